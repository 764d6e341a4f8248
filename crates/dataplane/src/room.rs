//! How much of what the kernel keeps for this program has room, and how much of that is used.

/// One map or set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub map: &'static str,
    pub used: usize,
    /// What it takes at most; `None` where it lets go of the element that was not used for the longest time, and so is
    /// never full.
    pub room: Option<u32>,
}
