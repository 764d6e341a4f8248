//! A regular expression as Go reads it -> one that matches the same texts here.
//!
//! Invariant: matching takes time linear in the text, whatever the pattern. What differs is rewritten: `\d`, `\w`, `\s`
//! and `\b` are ASCII's in Go; a brace that repeats nothing, and a bracket or `&&` inside of a class, stand for
//! themselves. Refused as in Go: to repeat a repetition, or more than a thousand times, and flags and classes that Go
//! does not have. Deliberately not here: `\C`, which is refused as if it were no regular expression.
//! Source: RE2's syntax.

use std::fmt;
use std::sync::OnceLock;

use regex::{Regex, RegexBuilder};

/// What one compiled pattern may take, in bytes.
pub(crate) const LARGEST: usize = 4 << 20;
const LARGEST_CACHE: usize = 256 << 10;
/// Bytes of a pattern's text.
const LONGEST: usize = 64 << 10;

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
    if pattern.len() > LONGEST {
        return Err(NoPattern::TooLarge);
    }
    let mut builder = RegexBuilder::new(&translate(pattern)?);
    builder.size_limit(largest).dfa_size_limit(LARGEST_CACHE).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => NoPattern::TooLarge,
        other => {
            let words = other.to_string();
            NoPattern::Mistaken(words.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
        }
    })
}

/// Names of classes, as in `[[:alpha:]]`.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];
/// How often a brace may repeat what is before it.
const MOST_REPEATED: u32 = 1000;

fn translate(pattern: &str) -> Result<String, NoPattern> {
    let mistaken = |words: String| Err(NoPattern::Mistaken(words));
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    // Where a class began, since a bracket right there is one of its members.
    let mut class: Option<usize> = None;
    // What repeats, if that was last: it cannot be repeated itself.
    let mut repeated: Option<&str> = None;
    while let Some(next) = rest.chars().next() {
        let here = rest;
        let after = &rest[next.len_utf8()..];
        rest = after;
        let operator = if class.is_none() { operator(here)? } else { None };
        if let Some(operator) = operator {
            if let Some(before) = repeated {
                return mistaken(format!("invalid nested repetition operator: `{before}{operator}`"));
            }
            rest = &here[operator.len()..];
            let lazy = usize::from(rest.starts_with('?'));
            repeated = Some(&here[..operator.len() + lazy]);
            out.push_str(&here[..operator.len() + lazy]);
            rest = &rest[lazy..];
            continue;
        }
        repeated = None;
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
                    // Ends of words elsewhere.
                    ('<' | '>', _) => out.push(escaped),
                    ('0'..='7', _) if escaped == '0' || rest.starts_with(|digit| ('0'..='7').contains(&digit)) => {
                        let end = after.bytes().take(3).take_while(|digit| (b'0'..=b'7').contains(digit)).count();
                        let code = u32::from_str_radix(&after[..end], 8).unwrap_or_default();
                        out.push_str(&format!(r"\x{{{code:x}}}"));
                        rest = &after[end..];
                    }
                    ('Q', false) => {
                        let (quoted, after) = rest.split_once(r"\E").unwrap_or((rest, ""));
                        out.push_str(&regex::escape(quoted));
                        rest = after;
                    }
                    ('x' | 'p' | 'P', _) if rest.starts_with('{') => {
                        let length = rest.find('}').map_or(rest.len(), |end| end + 1);
                        out.extend(['\\', escaped]);
                        out.push_str(&rest[..length]);
                        rest = &rest[length..];
                    }
                    _ => out.extend(['\\', escaped]),
                }
            }
            ('(', None) if rest.starts_with('?') => {
                let flags = &rest[1..];
                let end = flags.find(|flag: char| !flag.is_ascii_alphabetic() && flag != '-').unwrap_or(flags.len());
                if flags[end..].starts_with([')', ':']) && flags[..end].contains(|flag| !"imsU-".contains(flag)) {
                    return mistaken(format!("invalid or unsupported Perl syntax: `(?{}`", &flags[..end]));
                }
                out.push('(');
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
                Some((name, after)) if CLASSES.contains(&name.trim_start_matches('^')) => {
                    out.extend(["[:", name, ":]"]);
                    rest = after;
                }
                Some((name, _)) => return mistaken(format!("invalid character class range: `[:{name}:]`")),
                None => out.push_str(r"\["),
            },
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('&' | '~', Some(_)) => out.extend(['\\', next]),
            ('{', None) => out.push_str(r"\{"),
            (other, _) => out.push(other),
        }
    }
    Ok(out)
}

/// The operator that repeats what is before it, if one stands here: `*`, `+`, `?`, `{2}`, `{2,}` or `{2,3}`.
fn operator(text: &str) -> Result<Option<&str>, NoPattern> {
    if text.starts_with(['*', '+', '?']) {
        return Ok(Some(&text[..1]));
    }
    let Some((inside, _)) = text.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return Ok(None) };
    let (min, max) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if min.is_empty() || !digits(min) || !digits(max) {
        return Ok(None);
    }
    let whole = &text[..inside.len() + 2];
    let is_much = |text: &str| !text.is_empty() && text.parse::<u32>().map_or(true, |count| count > MOST_REPEATED);
    if is_much(min) || is_much(max) {
        return Err(NoPattern::Mistaken(format!("invalid repeat count: `{whole}`")));
    }
    Ok(Some(whole))
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
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^\141\060$", "a0", true),
            (r"^\<b\>$", "<b>", true),
            (r"^\p{Greek}\x{2026}\x{1F600}$", "α…😀", true),
            ("^a{2}?b+?$", "aab", true),
            ("^(?i:A)$", "a", true),
        ] {
            let regex = compile(pattern, LARGEST).unwrap();
            assert_eq!(regex.is_match(text), expected, "{pattern} on {text}");
        }
        for pattern in [
            "(",
            "[a",
            r"\",
            "(?=x)",
            "a**",
            "a{2}{2}",
            "a+?+",
            "a{1001}",
            "a{2,99999999999}",
            "(?x)a",
            "[[:foo:]]",
            r"\1",
            "((\\pL{1,1000}){1,1000}){1,1000}",
        ] {
            assert!(compile(pattern, LARGEST).is_err(), "{pattern}");
        }
    }
}
