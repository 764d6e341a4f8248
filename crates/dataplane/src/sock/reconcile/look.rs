//! What is believed to be in the maps -> whether it is there, a part at a time.
//!
//! Nothing tells whether somebody else wrote to a map, and to read large ones takes hundreds of milliseconds, in which
//! no change would be made. So an audit looks at a bounded number of elements and the next one goes on after them;
//! whoever finds one amiss has everything read.
//!
//! Deliberately not here: elements of no frontend. They lead nobody anywhere, and go when everything is read.

use std::ops::Bound;

use portolan_model::ServiceId;

use super::super::Error;
use super::super::element::Element;
use super::super::maps::Maps;
use super::Reconciler;

impl<M: Maps> Reconciler<M> {
    /// Looks at about so many elements, those of one Service together, from where it stopped the last time. Says
    /// whether all of them are as they were left. When it comes to the end, it also looks for frontends that are
    /// nobody's.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub(in super::super) fn look(&mut self, elements: usize) -> Result<bool, Error> {
        if !self.strays.is_empty() {
            return Ok(false);
        }
        for address in &self.node_addresses {
            if !self.maps.holds(&Element::NodeAddress(*address))? {
                return Ok(false);
            }
        }
        let mut left = elements;
        let begin = self.looked_at.take().map_or(Bound::Unbounded, Bound::Excluded);
        for (service, frontends) in self.owned.range::<ServiceId, _>((begin, Bound::Unbounded)) {
            if left == 0 {
                return Ok(true);
            }
            for frontend in frontends {
                // One that could not be had is no surprise, and asked for again by others.
                let Some(row) = self.rows.get(frontend) else { continue };
                for element in row.elements(*frontend) {
                    left = left.saturating_sub(1);
                    if !self.maps.holds(&element)? {
                        return Ok(false);
                    }
                }
            }
            self.looked_at = Some(service.clone());
        }
        self.looked_at = None;
        Ok(self.maps.frontends()?.iter().all(|frontend| self.rows.contains_key(frontend)))
    }
}
