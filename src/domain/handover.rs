//! Handing a lone shard over: what is to be said next, from what both nodes show.
//!
//! While writes wait, the old primary says how far it is; when the new one is as far, the old one
//! becomes its replica, and only then the new one primary. Each move is safe wherever the one before
//! it was left, so that the conversation may break off anywhere and begin anew.

use super::moving::talk::Standing;
use super::node::Address;
use super::observation::Role;

/// The two nodes, by the names under which they know each other.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    pub from: &'a Address,
    pub to: &'a Address,
}

/// Since when writes to the old primary wait, and how far it was then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub offset: u64,
    /// How long ago.
    pub waited_ms: u64,
    /// How long they wait at most.
    pub length_ms: u64,
}

impl Pause {
    /// What the new primary may take to come as far as the old one.
    fn catch_up_ms(self) -> u64 {
        self.length_ms * 3 / 10
    }

    /// Whether enough is left of it to tell the old primary to let go.
    fn is_long_enough(self) -> bool {
        self.length_ms.saturating_sub(self.waited_ms) >= self.length_ms / 5
    }
}

/// What is to be said next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Have writes to the old primary wait.
    Pause,
    /// Ask the new primary again how far it is.
    Ask,
    /// Make the old primary a replica of the new one.
    Demote,
    Promote,
    /// The old primary has what the new one lacks, and nobody takes writes: it goes on.
    GiveBack,
    Done,
    /// It cannot be done now; the old primary goes on.
    GiveUp(String),
}

/// The next move of a hand-over in which the old primary takes part.
#[must_use]
pub fn graceful(pair: Pair, from: &Standing, to: &Standing, pause: Option<Pause>) -> Move {
    if to.role == Role::Primary {
        return Move::Done;
    }
    let follows = |standing: &Standing, other| standing.replication.primary.as_ref() == Some(other);
    if !follows(to, pair.from) {
        return Move::GiveUp(format!("{} does not follow {} any more", pair.to, pair.from));
    }
    let behind = from.replication.offset.saturating_sub(to.replication.offset);
    match (from.role, pause) {
        (Role::Primary, None) => Move::Pause,
        (Role::Primary, Some(pause)) if !pause.is_long_enough() => {
            Move::GiveUp(format!("writes could not wait long enough for {}", pair.to))
        }
        (Role::Primary, Some(pause)) if to.replication.offset >= pause.offset => Move::Demote,
        (Role::Primary, Some(pause)) if pause.waited_ms > pause.catch_up_ms() => {
            Move::GiveUp(format!(
                "{} did not catch up within {} ms while writes waited",
                pair.to,
                pause.catch_up_ms()
            ))
        }
        (Role::Primary, Some(_)) => Move::Ask,
        (Role::Replica, _) if !follows(from, pair.to) => {
            Move::GiveUp(format!("{} was made a replica of another node", pair.from))
        }
        (Role::Replica, _) if behind == 0 => Move::Promote,
        (Role::Replica, Some(pause)) if pause.waited_ms <= pause.catch_up_ms() => Move::Ask,
        (Role::Replica, _) => Move::GiveBack,
        (Role::Sentinel, _) => Move::GiveUp(format!("{} is a Sentinel", pair.from)),
    }
}

/// The next move where the old primary is not asked; it is told where it answers.
#[must_use]
pub fn forced(pair: Pair, from: Option<&Standing>, to: &Standing) -> Move {
    let leads = |standing: &&Standing| standing.role == Role::Primary;
    match (from.filter(leads), to.role) {
        (Some(_), _) => Move::Demote,
        (None, Role::Primary) => Move::Done,
        (None, Role::Replica) => Move::Promote,
        (None, Role::Sentinel) => Move::GiveUp(format!("{} is a Sentinel", pair.to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::observation::Replication;

    fn standing(role: Role, follows: Option<&str>, offset: u64) -> Standing {
        let primary = follows.map(|a| a.parse().unwrap());
        Standing { role, replication: Replication { primary, offset, ..Replication::default() } }
    }

    fn next(from: &Standing, to: &Standing, pause: Option<(u64, u64)>) -> Move {
        let (a, b): (Address, Address) = ("a:1".parse().unwrap(), "b:1".parse().unwrap());
        let pause = pause.map(|(offset, waited_ms)| Pause { offset, waited_ms, length_ms: 5_000 });
        graceful(Pair { from: &a, to: &b }, from, to, pause)
    }

    #[test]
    fn no_two_are_primary_on_the_way() {
        let (lead, behind) =
            (standing(Role::Primary, None, 90), standing(Role::Replica, Some("a:1"), 80));
        let level = standing(Role::Replica, Some("a:1"), 90);
        let let_go = standing(Role::Replica, Some("b:1"), 90);
        assert_eq!(next(&lead, &behind, None), Move::Pause);
        assert_eq!(next(&lead, &behind, Some((90, 10))), Move::Ask);
        assert_eq!(next(&lead, &level, Some((90, 10))), Move::Demote);
        assert_eq!(next(&let_go, &level, None), Move::Promote);
        assert_eq!(next(&let_go, &standing(Role::Primary, None, 90), None), Move::Done);
    }

    #[test]
    fn what_one_has_alone_is_not_given_up() {
        let let_go = standing(Role::Replica, Some("b:1"), 104);
        let short = standing(Role::Replica, Some("a:1"), 90);
        assert_eq!(next(&let_go, &short, Some((90, 10))), Move::Ask);
        assert_eq!(next(&let_go, &short, Some((90, 1_600))), Move::GiveBack);
        assert_eq!(next(&let_go, &short, None), Move::GiveBack);
    }

    #[test]
    fn writes_do_not_wait_for_ever() {
        let (lead, behind) =
            (standing(Role::Primary, None, 90), standing(Role::Replica, Some("a:1"), 80));
        for waited in [1_600, 4_500] {
            assert!(matches!(next(&lead, &behind, Some((90, waited))), Move::GiveUp(_)));
        }
        let level = standing(Role::Replica, Some("a:1"), 90);
        assert!(matches!(next(&lead, &level, Some((90, 4_500))), Move::GiveUp(_)));
    }
}
