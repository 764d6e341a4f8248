//! A regular expression as Go reads it -> one that matches the same texts here.
//!
//! Invariant: matching takes time linear in the text, whatever the pattern. What differs is rewritten: `\d`, `\w`, `\s`
//! and `\b` are ASCII's in Go; a brace that repeats nothing, and a bracket or `&&` inside of a class, stand for
//! themselves. Deliberately not here: `\Q…\E` and `\C`, which are refused as if they were no regular expression.
//! Source: RE2's syntax.

use std::fmt;
use std::sync::OnceLock;

use regex::{Regex, RegexBuilder};

/// What one compiled pattern may take, in bytes.
pub(crate) const LARGEST: usize = 4 << 20;
const LARGEST_CACHE: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: OnceLock::new() }
    }

    /// A pattern that is none matches nothing.
    pub(crate) fn matches(&self, text: &str) -> bool {
        self.compiled().is_some_and(|regex| regex.is_match(text))
    }

    pub(crate) fn compiled(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| compile(&self.text, LARGEST).ok()).as_ref()
    }
}

/// Why a text is no pattern.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPattern {
    TooLarge,
    Mistaken(String),
}

impl fmt::Display for NoPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("the expression is too large"),
            Self::Mistaken(why) => f.write_str(why),
        }
    }
}

/// # Errors
/// Says what is wrong with the pattern, which may take up to `largest` bytes.
pub(crate) fn compile(pattern: &str, largest: usize) -> Result<Regex, NoPattern> {
    let mut builder = RegexBuilder::new(&translate(pattern));
    builder.size_limit(largest).dfa_size_limit(LARGEST_CACHE).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => NoPattern::TooLarge,
        other => {
            let words = other.to_string();
            NoPattern::Mistaken(words.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
        }
    })
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    // Where a class began, since a bracket right there is one of its members.
    let mut class: Option<usize> = None;
    while let Some(next) = rest.chars().next() {
        let after = &rest[next.len_utf8()..];
        rest = after;
        match (next, class) {
            ('\\', _) => {
                let Some(escaped) = after.chars().next() else {
                    out.push('\\');
                    break;
                };
                rest = &after[escaped.len_utf8()..];
                match (escaped, class.is_some()) {
                    ('d', true) => out.push_str("0-9"),
                    ('w', true) => out.push_str("0-9A-Za-z_"),
                    ('s', true) => out.push_str(r"\t\n\f\r "),
                    ('d', false) => out.push_str("[0-9]"),
                    ('w', false) => out.push_str("[0-9A-Za-z_]"),
                    ('s', false) => out.push_str(r"[\t\n\f\r ]"),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('S', _) => out.push_str(r"[^\t\n\f\r ]"),
                    ('b', false) => out.push_str(r"(?-u:\b)"),
                    ('B', false) => out.push_str(r"(?-u:\B)"),
                    _ => out.extend(['\\', escaped]),
                }
            }
            ('[', None) => {
                out.push('[');
                if let Some(negated) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = negated;
                }
                if let Some(after) = rest.strip_prefix(']') {
                    out.push_str(r"\]");
                    rest = after;
                }
                class = Some(out.len());
            }
            ('[', Some(_)) => match rest.strip_prefix(':').and_then(|rest| rest.split_once(":]")) {
                Some((name, after)) => {
                    out.extend(["[:", name, ":]"]);
                    rest = after;
                }
                None => out.push_str(r"\["),
            },
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('&' | '~', Some(_)) => out.extend(['\\', next]),
            ('{', None) if !repeats(rest) => out.push_str(r"\{"),
            (other, _) => out.push(other),
        }
    }
    out
}

/// Whether what follows a brace makes it a repetition: `2}`, `2,}` or `2,3}`.
fn repeats(rest: &str) -> bool {
    let Some((inside, _)) = rest.split_once('}') else { return false };
    let (min, max) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !min.is_empty() && digits(min) && digits(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, expected) in [
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "* * * * */5", true),
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "* * * *", false),
            (r"^\d$", "٣", false),
            (r"^[\d.]+$", "1.2", true),
            (r"^[^\d]$", "a", true),
            (r"^\w+$", "é", false),
            (r"^.$", "é", true),
            ("a{,2}", "a{,2}", true),
            ("a{x}", "a{x}", true),
            ("^a{2}$", "aa", true),
            ("^[[]$", "[", true),
            ("^[]a]$", "]", true),
            ("^[a&&b]+$", "&", true),
            ("^[[:alpha:]]+$", "ab", true),
            (r"^/?[a-z]+\/x$", "a/x", true),
            ("b", "abc", true),
        ] {
            let regex = compile(pattern, LARGEST).unwrap();
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text}");
        }
        for pattern in ["(", "[a", r"\", "(?=x)", "a{1,1000}{1,1000}{1,1000}"] {
            assert!(compile(pattern, LARGEST).is_err(), "{pattern}");
        }
    }
}
