//! Conducts a hand-over: what is said to the two nodes, as fast as they answer, since writes wait. Where
//! Sentinels watch, it is one of them that then promotes the new primary.
//!
//! What to say is decided in [`crate::domain::handover`]; that it is done, by the next look. If this
//! ends anywhere in between, whoever looks next goes on from what the nodes show.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::look::{Logins, target};
use crate::domain::fault::Fault;
use crate::domain::handover::{self, Move, Pair, Pause};
use crate::domain::moving::talk::{Answer, Lane, Saying, Standing};
use crate::domain::node::{Address, ClusterNodeId};
use crate::domain::observation::{Observation, Role};
use crate::domain::placement::Warning;
use crate::domain::step::command::{FailoverMethod, Verb};
use crate::domain::step::handover::{HandOver, PAUSE_MS};
use crate::domain::step::switch_over::SwitchOver;
use crate::fleet::{Fence, Fleet, FleetError, Talk, Target};

/// How long one answer may take.
const WITHIN: Duration = Duration::from_millis(800);
/// Between two questions how far the new primary is.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// The code of a fault that passes: it could not be done just then.
const GIVEN_UP: &str = "TRYAGAIN";

/// Hands over, or says why not. What cannot be known to have failed is left for the next look.
pub(super) async fn conduct(
    fleet: &dyn Fleet,
    step: &HandOver,
    seen: &Observation,
    logins: &Logins,
    fence: Fence,
) -> Result<Option<Warning>, Fault> {
    let voice = |node: &Address| Voice::to(node, fleet, seen, logins, fence);
    let Some(to) = voice(&step.to) else { return Ok(None) };
    let others: Vec<Voice> = step.others.iter().filter_map(voice).collect();
    let from = voice(&step.from);
    let done = match (step.method, &from) {
        (FailoverMethod::Graceful, Some(from)) => {
            let pair = Pair { from: &step.from, to: &step.to };
            graceful(&Course { pair, from, to: &to, pause_ms: PAUSE_MS, leader: None }).await
        }
        (FailoverMethod::Graceful, None) => return Ok(None),
        (FailoverMethod::Force | FailoverMethod::Takeover, from) => {
            forced(step, from.as_ref(), &to).await
        }
    };
    if done.is_ok() {
        // Whoever does not hear it now follows in a later step.
        let follow = others.iter().map(|other| other.say(Verb::ReplicaOf(step.to.clone())));
        for result in join_all(follow).await {
            if let Err(error) = result {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a replica did not hear of its new primary"
                );
            }
        }
    }
    done.map(|()| None)
}

/// Has the old primary let go and a Sentinel promote the new one, or says why not. By force, nobody but
/// the Sentinel is asked.
pub(super) async fn switch(
    fleet: &dyn Fleet,
    step: &SwitchOver,
    seen: &Observation,
    logins: &Logins,
    fence: Fence,
) -> Result<Option<Warning>, Fault> {
    let voice = |node: &Address| Voice::to(node, fleet, seen, logins, fence);
    let Some(sentinel) = voice(&step.sentinel) else { return Ok(None) };
    let leader = Leader { voice: sentinel, name: &step.watchers.name };
    let pair = Pair { from: &step.from, to: &step.to };
    match (step.method, voice(&step.from), voice(&step.to)) {
        (FailoverMethod::Graceful, Some(from), Some(to)) => {
            let (pause_ms, leader) = (step.pause_ms, Some(&leader));
            graceful(&Course { pair, from: &from, to: &to, pause_ms, leader }).await?;
        }
        (FailoverMethod::Graceful, _, _) => {}
        (FailoverMethod::Force | FailoverMethod::Takeover, _, _) => leader.promote().await?,
    }
    Ok(None)
}

/// A hand-over in which the old primary takes part.
struct Course<'a> {
    pair: Pair<'a>,
    from: &'a Voice<'a>,
    to: &'a Voice<'a>,
    /// How long writes wait at most.
    pause_ms: u32,
    /// Who promotes the new primary; it is told itself where nobody watches.
    leader: Option<&'a Leader<'a>>,
}

async fn graceful(course: &Course<'_>) -> Result<(), Fault> {
    let mut paused = None;
    let done = converse(course, &mut paused).await;
    if paused.is_none() {
        return done;
    }
    // Those who waited are answered now, by whichever node they are at.
    let released = course.from.say(Verb::Unpause).await;
    done.and(released.map_err(Fault::from))
}

/// Until it is done or cannot be. `paused` is since when writes wait, and how far the old primary was.
async fn converse(course: &Course<'_>, paused: &mut Option<(Instant, u64)>) -> Result<(), Fault> {
    let &Course { pair, from, to, pause_ms, leader } = course;
    // First of all, so that the connections are there before writes wait.
    let hears = async {
        match leader {
            Some(leader) => leader.voice.greet().await,
            None => Ok(()),
        }
    };
    let (mut old, mut new, ()) = tokio::try_join!(from.stand(), to.stand(), hears)?;
    loop {
        let pause = paused.map(|(since, offset)| Pause {
            offset,
            waited_ms: millis(since.elapsed()),
            length_ms: pause_ms.into(),
        });
        match handover::graceful(pair, &old, &new, pause) {
            Move::Pause => {
                let since = Instant::now();
                *paused = Some((since, u64::MAX));
                old = from.say_and_stand(Verb::PauseWrites { ms: pause_ms.into() }).await?;
                *paused = Some((since, old.replication.offset));
                new = to.stand().await?;
            }
            Move::Ask => {
                tokio::time::sleep(ASK_AGAIN).await;
                new = to.stand().await?;
            }
            Move::Demote => old = from.say_and_stand(Verb::ReplicaOf(pair.to.clone())).await?,
            Move::Promote => match leader {
                // It may have heard what it did not answer: nothing is taken back.
                Some(leader) => return leader.promote().await,
                None => new = promote(from, to).await?,
            },
            Move::GiveBack => {
                from.say(Verb::ReplicaOfNone).await?;
                let why = format!("{} could not come as far as {}", pair.to, pair.from);
                return Err(Fault::new(GIVEN_UP, why, pair.to));
            }
            Move::GiveUp(why) => return Err(Fault::new(GIVEN_UP, why, pair.to)),
            Move::Done => return Ok(()),
        }
    }
}

async fn promote(from: &Voice<'_>, to: &Voice<'_>) -> Result<Standing, Fault> {
    match to.say_and_stand(Verb::ReplicaOfNone).await {
        // It was never told, so that the old one may go on.
        Err(error @ FleetError::Unreachable { .. }) => {
            from.say(Verb::ReplicaOfNone).await?;
            Err(error.into())
        }
        told => Ok(told?),
    }
}

async fn forced(step: &HandOver, from: Option<&Voice<'_>>, to: &Voice<'_>) -> Result<(), Fault> {
    let pair = Pair { from: &step.from, to: &step.to };
    let mut old = match from {
        Some(from) => from.stand().await.ok(),
        None => None,
    };
    let mut new = to.stand().await?;
    loop {
        match (handover::forced(pair, old.as_ref(), &new), from) {
            // One that does not hear it is deposed all the same; its mark tells.
            (Move::Demote, Some(from)) => {
                let told = from.say_and_stand(Verb::ReplicaOf(step.to.clone())).await;
                old = told.ok().filter(|old| old.role != Role::Primary);
            }
            (Move::Promote, _) => new = to.say_and_stand(Verb::ReplicaOfNone).await?,
            (Move::GiveUp(why), _) => return Err(Fault::new(GIVEN_UP, why, &step.to)),
            (Move::Done, _) => return Ok(()),
            (Move::Demote | Move::Pause | Move::Ask | Move::GiveBack, _) => old = None,
        }
    }
}

/// One node, on the connection for what is short.
struct Voice<'a> {
    fleet: &'a dyn Fleet,
    target: Target,
    identity: ClusterNodeId,
}

/// The Sentinel that is to promote the new primary.
struct Leader<'a> {
    voice: Voice<'a>,
    name: &'a str,
}

impl Leader<'_> {
    async fn promote(&self) -> Result<(), Fault> {
        Ok(self.voice.say(Verb::FailOverWatch(self.name.to_owned())).await?)
    }
}

impl<'a> Voice<'a> {
    /// To a node that was seen.
    fn to(
        node: &Address,
        fleet: &'a dyn Fleet,
        seen: &Observation,
        logins: &Logins,
        fence: Fence,
    ) -> Option<Self> {
        let identity = seen.report(node)?.identity();
        let target = Target { fence: Some(fence), ..target(node, logins) };
        Some(Self { fleet, target, identity })
    }

    async fn stand(&self) -> Result<Standing, FleetError> {
        match self.converse(&[Saying::Stand]).await?.pop() {
            Some(Answer::Standing(standing)) => Ok(*standing),
            answer => Err(self.unexpected(answer)),
        }
    }

    async fn greet(&self) -> Result<(), FleetError> {
        match self.converse(&[Saying::Ping]).await?.pop() {
            Some(Answer::Done) => Ok(()),
            answer => Err(self.unexpected(answer)),
        }
    }

    async fn say(&self, verb: Verb) -> Result<(), FleetError> {
        match self.converse(&[Saying::Command(verb)]).await?.pop() {
            Some(Answer::Done) => Ok(()),
            answer => Err(self.unexpected(answer)),
        }
    }

    /// Both in one batch: how it stands once it has done that.
    async fn say_and_stand(&self, verb: Verb) -> Result<Standing, FleetError> {
        let mut answers = self.converse(&[Saying::Command(verb), Saying::Stand]).await?;
        let standing = answers.pop();
        match (answers.pop(), standing) {
            (Some(Answer::Done), Some(Answer::Standing(standing))) => Ok(*standing),
            (Some(Answer::Done), answer) | (answer, _) => Err(self.unexpected(answer)),
        }
    }

    async fn converse(&self, sayings: &[Saying]) -> Result<Vec<Answer>, FleetError> {
        let (lane, within) = (Lane::Control, WITHIN);
        let talk = Talk { target: &self.target, lane, identity: &self.identity, within };
        self.fleet.converse(&talk, sayings).await
    }

    fn unexpected(&self, answer: Option<Answer>) -> FleetError {
        let node = self.target.address.clone();
        match answer {
            Some(Answer::Refused { code, message }) => FleetError::Rejected { node, code, message },
            _ => FleetError::Rejected {
                node,
                code: "unexpected_reply".to_owned(),
                message: "the answer is none that this command has".to_owned(),
            },
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
