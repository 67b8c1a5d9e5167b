//! What lies in slots that are to move, asked of the nodes that have them now.
//!
//! It only looks, in short batches. A node that cannot be asked makes a warning; what depends on its
//! answers refuses by itself.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::{DeskError, PlanOptions, Preview};
use crate::domain::intent::{Amendment, Intent};
use crate::domain::moving::survey::{Depth, Figures, Survey};
use crate::domain::moving::talk::Lane;
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Observation, Role};
use crate::domain::refusal::{FieldError, Refusal};
use crate::domain::slot::SlotSet;
use crate::domain::step::slots::{MoveMethod, MoveSlots};
use crate::domain::topology::Topology;
use crate::engine::Engine;
use crate::engine::look::{Logins, target};
use crate::fleet::{Talk, Target};

/// How long one node is asked about its keys; all are asked side by side. Who asks for a plan wants it to
/// begin; a key that is found to be big later waits for consent then.
pub(super) const AT_LENGTH: Duration = Duration::from_secs(2);
const BRIEFLY: Duration = Duration::from_millis(150);
/// The same where servers move slots as a whole: no key is too big for that, and how much there is shows
/// from fewer.
const AT_A_GLANCE: Duration = Duration::from_millis(50);
/// How long one batch of answers may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

impl Engine {
    /// The forecast of an amendment; what lies in the slots that move by it is looked at, and told.
    pub(super) async fn forecast_with_moves(
        &self,
        wanted: &Topology,
        seen: &Observation,
        intent: &Intent,
        from_version: i32,
        mut amendment: Amendment,
        options: &PlanOptions,
    ) -> Result<Preview, DeskError> {
        let forecast = |amendment| {
            self.forecast(wanted, seen, intent.clone(), from_version, amendment, options)
        };
        let first = forecast(amendment.clone())?;
        let moves: Vec<&MoveSlots> = first.steps.iter().filter_map(|s| s.step.moves()).collect();
        if moves.is_empty() {
            return Ok(first);
        }
        let slots = moves.iter().fold(SlotSet::empty(), |all, step| all.union(&step.slots));
        let logins = self.logins(&wanted.spec).await?;
        let latency = amendment.terms.moving.max_latency_ms;
        let whole = moves.iter().all(|step| step.how != MoveMethod::Keys);
        let within = match (options.thorough, whole) {
            (true, _) => AT_LENGTH,
            (false, true) => AT_A_GLANCE,
            (false, false) => BRIEFLY,
        };
        let figures = self.figures(&slots, Depth::Sizes, latency, &logins, seen, within).await;
        // Slots that are half-way have to be closed, whatever room there is.
        let overfull = if intent.is_emergency() { vec![] } else { figures.overfull(&moves, seen) };
        if !overfull.is_empty() {
            let errors = overfull.into_iter().map(|why| FieldError::new("/intent", why)).collect();
            return Err(Refusal::NodesUnfit { errors, redis: None }.into());
        }
        let estimate = figures.estimate(&moves);
        amendment.warnings.extend(figures.warnings(&moves));
        amendment.terms.moving.big = figures.big;
        Ok(Preview { estimate, ..forecast(amendment)? })
    }

    /// What lies in these slots, as far as the nodes that have them tell in time.
    pub(super) async fn figures(
        &self,
        slots: &SlotSet,
        depth: Depth,
        max_latency_ms: u64,
        logins: &Logins,
        seen: &Observation,
        within: Duration,
    ) -> Figures {
        let ask = |node: &Address| {
            let view = seen.view(node)?;
            let primary = seen.report(node).is_some_and(|r| r.role == Role::Primary);
            let own = view.my_slots().intersection(slots);
            let (target, identity) = (target(node, logins), view.my_id.clone());
            let survey = Survey::new(&own, depth, max_latency_ms);
            (primary && !own.is_empty()).then(|| self.ask_all(target, identity, survey, within))
        };
        let asked = join_all(seen.nodes.keys().filter_map(ask)).await;
        asked.into_iter().fold(Figures::default(), Figures::and)
    }

    async fn ask_all(
        &self,
        target: Target,
        identity: ClusterNodeId,
        mut survey: Survey,
        within: Duration,
    ) -> Figures {
        let until = Instant::now() + within;
        let talk = Talk {
            target: &target,
            lane: Lane::Control,
            identity: &identity,
            within: ANSWERS_WITHIN,
        };
        // The counts are few, and wanted in full.
        while !survey.has_counted() || Instant::now() < until {
            let sayings = survey.ask();
            if sayings.is_empty() {
                break;
            }
            let heard = match self.fleet.converse(&talk, &sayings).await {
                Ok(answers) => survey.hear(answers),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = heard {
                let failures = vec![format!("{}: {why}", target.address)];
                return Figures { failures, ..survey.figures() };
            }
        }
        let figures = survey.figures();
        self.surveyed.keep(identity, figures.small.clone());
        figures
    }
}
