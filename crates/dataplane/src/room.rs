//! How much of what the kernel keeps for this program has room, and how much of that is used.

use portolan_model::forwarding::Family;

/// One map of the socket programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub map: &'static str,
    pub used: usize,
    /// What it takes at most; `None` where it lets go of the element that was not used for the longest time, and so is
    /// never full.
    pub room: Option<u32>,
}

/// One map or set of nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetSize {
    pub set: &'static str,
    pub family: Family,
    pub elements: usize,
    /// What it takes at most; `None` where the machine's memory is the only bound.
    pub room: Option<u32>,
}
