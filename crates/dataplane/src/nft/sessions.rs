//! Frontends that stand for others -> the numbers under which the kernel remembers clients.
//!
//! A key of the kernel's has no room for a whole frontend that is not the packet's own, so those that remember together
//! have a number in common.
//!
//! Invariants: no two that stand for others have the same number in a family; the highest bit of a number is set, and of
//! nothing else that a slot's last part may be; a number comes from the frontend itself, so that the next life of this
//! program finds the sessions it left. Only where two numbers collide the later one gets
//! the next that is free, and may get another in the next life; then its clients are asked to choose again.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::forwarding::{Family, Frontend};

use super::entries::digest;

const HIGHEST: u32 = 1 << 31;

#[derive(Debug, Default)]
pub(super) struct Sessions {
    numbers: BTreeMap<Frontend, u32>,
    taken: BTreeSet<(Family, u32)>,
}

impl Sessions {
    /// The number of those that the frontend stands for.
    pub(super) fn number(&mut self, standing: Frontend) -> u32 {
        if let Some(number) = self.numbers.get(&standing) {
            return *number;
        }
        let family = standing.family();
        let mut number = digest(&standing) | HIGHEST;
        while !self.taken.insert((family, number)) {
            number = number.wrapping_add(1) | HIGHEST;
        }
        self.numbers.insert(standing, number);
        number
    }

    /// Nobody remembers by the frontend any more.
    pub(super) fn release(&mut self, standing: &Frontend) {
        if let Some(number) = self.numbers.remove(standing) {
            self.taken.remove(&(standing.family(), number));
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
        let own = Sessions::default().number(frontend(1));
        assert_eq!(own, digest(&frontend(1)) | HIGHEST);
        // As if its own number were another's already.
        sessions.taken.insert((Family::V4, own));
        let number = sessions.number(frontend(1));
        assert_eq!(number, own.wrapping_add(1) | HIGHEST);
        assert_eq!(sessions.number(frontend(1)), number);
        sessions.release(&frontend(1));
        assert_eq!(sessions.taken.len(), 1);
    }
}
