//! The forms of names in Kubernetes, and how to make one from a base.
//!
//! Each check returns what is wrong in Kubernetes' words, or nothing.

/// Longest name made by [`generate_name`], before the suffix.
const MAX_GENERATED_BASE: usize = 63 - 5;

/// Letters and digits of generated suffixes: no vowels, so that no words come out.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `base` cut to leave room for five characters drawn from `random`.
pub fn generate_name(base: &str, random: u64) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    let mut rest = random;
    for _ in 0..5 {
        let index = usize::try_from(rest % SUFFIX.len() as u64).unwrap_or(0);
        name.push(char::from(SUFFIX[index]));
        rest /= SUFFIX.len() as u64;
    }
    name
}
