//! Frontends that stand for others -> the numbers under which the kernel remembers clients.
//!
//! A key of the kernel's has no room for a whole frontend that is not the packet's own, so those that remember together
//! have a number in common.
//!
//! Invariants: no two that stand for others have the same number in a family; a number comes from the frontend itself,
//! so that the next life of this program finds the sessions it left. Only where two numbers collide the later one gets
//! the next that is free, and may get another in the next life; then its clients are asked to choose again.

use std::collections::BTreeMap;

use portolan_model::forwarding::{Family, Frontend};

use super::entries::digest;

#[derive(Debug, Default)]
pub(super) struct Sessions {
    numbers: BTreeMap<Frontend, u32>,
    stand: BTreeMap<(Family, u32), Frontend>,
}

impl Sessions {
    /// The number of those that the frontend stands for.
    pub(super) fn number(&mut self, standing: Frontend) -> u32 {
        if let Some(number) = self.numbers.get(&standing) {
            return *number;
        }
        let family = standing.family();
        let mut number = digest(&standing);
        // 0 is the priority of a packet that nothing was looked up for.
        while number == 0 || self.stand.contains_key(&(family, number)) {
            number = number.wrapping_add(1);
        }
        self.numbers.insert(standing, number);
        self.stand.insert((family, number), standing);
        number
    }

    /// Who stands for those with the number.
    pub(super) fn standing(&self, family: Family, number: u32) -> Option<&Frontend> {
        self.stand.get(&(family, number))
    }

    /// Nobody remembers by the frontend any more.
    pub(super) fn release(&mut self, standing: &Frontend) {
        if let Some(number) = self.numbers.remove(standing) {
            self.stand.remove(&(standing.family(), number));
        }
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::Protocol;
    use portolan_model::forwarding::Place;

    use super::*;

    #[test]
    fn numbers_are_kept_and_never_shared() {
        let frontend = |port| Frontend { place: Place::Node(Family::V4), protocol: Protocol::Tcp, port };
        let mut sessions = Sessions::default();
        let (a, b) = (frontend(1), frontend(2));
        // As if b's own number were another's already.
        sessions.stand.insert((Family::V4, digest(&b)), a);
        let number = sessions.number(b);
        assert_eq!(number, digest(&b).wrapping_add(1));
        assert_eq!(sessions.number(b), number);
        assert_eq!(sessions.standing(Family::V4, number), Some(&b));
        sessions.release(&b);
        assert_eq!(sessions.standing(Family::V4, number), None);
        assert_eq!(Sessions::default().number(b), digest(&b));
    }
}
