//! Where a topology is not as wanted: what may be offered instead of building upon that.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::id::PlanId;

/// A way out of an unsettled state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    pub offer: OfferKind,
    /// What it would do, and how to ask for it.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OfferKind {
    /// Go on with the plan that ended without success.
    Retry,
    /// Make the nodes as the current version wants them.
    Repair,
    /// Go back to the version before.
    Revert,
    /// Want what is seen.
    AcceptDrift,
}

/// How a topology stands, so far as offers depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Whether its create plan has succeeded.
    pub created: bool,
    /// Whether it is to have no members any more.
    pub gone: bool,
    /// The last plan and its intent's kind, if that failed or was cancelled.
    pub unfinished: Option<(PlanId, &'a str)>,
    /// The version before the current one.
    pub parent: Option<i32>,
    /// Whether something stands in the way of the current version that no plan can take away.
    pub blocked: bool,
    /// Whether what is seen could be wanted: `accept_drift::amend` does not refuse.
    pub acceptable: bool,
}

/// What may be asked for, the least change of mind first.
#[must_use]
pub fn offers(standing: &Standing) -> Vec<Offer> {
    let Standing { created, gone, unfinished, parent, blocked, acceptable } = *standing;
    let offer = |offer, detail: String| Offer { offer, detail };
    let retry = unfinished.map(|(plan, kind)| {
        let detail = format!(
            "POST /v1/plans/{plan}/retry goes on with the {kind} plan that did not succeed"
        );
        offer(OfferKind::Retry, detail)
    });
    let repair = (created && !gone && !blocked).then(|| {
        let detail = "a plan with {\"intent\": {\"kind\": \"repair\"}} makes the nodes as the current version wants them";
        offer(OfferKind::Repair, detail.to_owned())
    });
    let revert = parent.filter(|version| created && *version >= 1).map(|version| {
        let detail = format!("a plan with {{\"intent\": {{\"kind\": \"revert\", \"version\": {version}}}}} goes back to version {version}");
        offer(OfferKind::Revert, detail)
    });
    let accept = (created && !gone && acceptable).then(|| {
        let detail = "a plan with {\"intent\": {\"kind\": \"accept_drift\"}} makes what is seen the wanted topology and changes no node";
        offer(OfferKind::AcceptDrift, detail.to_owned())
    });
    [retry, repair, revert, accept].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIFTED: Standing = Standing {
        created: true,
        gone: false,
        unfinished: None,
        parent: None,
        blocked: false,
        acceptable: true,
    };

    fn kinds(standing: &Standing) -> Vec<OfferKind> {
        offers(standing).into_iter().map(|o| o.offer).collect()
    }

    #[test]
    fn offers_fit_what_happened() {
        use OfferKind::{AcceptDrift, Repair, Retry, Revert};
        let plan = PlanId(uuid::Uuid::nil());
        assert_eq!(kinds(&DRIFTED), [Repair, AcceptDrift]);
        let failed = Standing { unfinished: Some((plan, "dissolve")), parent: Some(1), ..DRIFTED };
        assert_eq!(kinds(&Standing { gone: true, ..failed }), [Retry, Revert]);
        assert_eq!(kinds(&Standing { blocked: true, ..failed }), [Retry, Revert, AcceptDrift]);
        let forming = Standing { created: false, parent: Some(0), acceptable: false, ..failed };
        assert_eq!(kinds(&forming), [Retry]);
    }
}
