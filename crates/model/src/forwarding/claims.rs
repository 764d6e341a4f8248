//! Who gets a frontend that several Services ask for.

use std::collections::{BTreeMap, BTreeSet};

use super::Frontend;
use crate::ServiceId;

/// Every frontend that is asked for, and by whom. The first in the order of ids gets it, so that the outcome does not
/// depend on the order in which the Services were heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    by_frontend: BTreeMap<Frontend, Claimants>,
}

/// Nearly always one; the set is for when it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claimants {
    One(ServiceId),
    Several(BTreeSet<ServiceId>),
}

impl Claims {
    /// The Service takes part in the contest for the frontend. Gives the one who loses it by that, if any.
    pub fn claim(&mut self, frontend: Frontend, service: &ServiceId) -> Option<ServiceId> {
        match self.by_frontend.get_mut(&frontend) {
            None => {
                self.by_frontend.insert(frontend, Claimants::One(service.clone()));
                None
            }
            Some(Claimants::One(other)) if other == service => None,
            Some(claimants) => {
                let mut all = claimants.all();
                let before = all.first().cloned();
                let is_new = all.insert(service.clone());
                let lost = if is_new && all.first() == Some(service) { before } else { None };
                *claimants = Claimants::Several(all);
                lost
            }
        }
    }

    /// The Service no longer asks for the frontend. Gives the one who gets it by that, if any.
    pub fn release(&mut self, frontend: Frontend, service: &ServiceId) -> Option<ServiceId> {
        let claimants = self.by_frontend.get_mut(&frontend)?;
        let mut all = claimants.all();
        let held = all.first() == Some(service);
        if !all.remove(service) {
            return None;
        }
        let heir = all.first().cloned();
        match (all.len(), heir.clone()) {
            (0, _) | (_, None) => {
                self.by_frontend.remove(&frontend);
            }
            (1, Some(only)) => *claimants = Claimants::One(only),
            _ => *claimants = Claimants::Several(all),
        }
        if held { heir } else { None }
    }

    /// Gives back what growing left: a tree that was filled in order is half empty.
    pub fn fit(&mut self) {
        self.by_frontend = std::mem::take(&mut self.by_frontend).into_iter().collect();
    }

    /// Who has the frontend.
    #[must_use]
    pub fn holder(&self, frontend: &Frontend) -> Option<&ServiceId> {
        match self.by_frontend.get(frontend)? {
            Claimants::One(service) => Some(service),
            Claimants::Several(services) => services.first(),
        }
    }
}

impl Claimants {
    fn all(&self) -> BTreeSet<ServiceId> {
        match self {
            Self::One(service) => BTreeSet::from([service.clone()]),
            Self::Several(services) => services.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;
    use crate::forwarding::{Family, Place};

    #[test]
    fn the_first_by_name_has_it_in_whatever_order_they_come() {
        let frontend = Frontend { place: Place::Node(Family::V4), protocol: Protocol::Tcp, port: 30000 };
        let (a, b, c) = (ServiceId::new("x", "a"), ServiceId::new("x", "b"), ServiceId::new("x", "c"));
        let mut claims = Claims::default();
        assert_eq!(claims.claim(frontend, &b), None);
        assert_eq!(claims.claim(frontend, &c), None);
        assert_eq!(claims.claim(frontend, &a), Some(b.clone()));
        assert_eq!(claims.claim(frontend, &a), None);
        assert_eq!(claims.holder(&frontend), Some(&a));
        assert_eq!(claims.release(frontend, &b), None);
        assert_eq!(claims.release(frontend, &a), Some(c.clone()));
        assert_eq!(claims.release(frontend, &c), None);
        assert_eq!(claims, Claims::default());
    }
}
