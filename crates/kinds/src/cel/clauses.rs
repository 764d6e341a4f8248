//! The text that `format` is called on -> its parts, and which values each of them can show.
//!
//! Source: the strings extension of cel-go, version 2, whose words these are.

use super::types::Type;

/// Digits behind the point that a clause shows at most.
const MOST_DIGITS: usize = 100;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// As it stands.
    Text(char),
    /// A value, by the letter of its clause, with this many digits behind the point.
    Clause(char, usize),
}

/// The parts of a text, up to the first that is none, and what is wrong with that.
pub(super) fn parts(text: &str) -> (Vec<Part>, Option<String>) {
    let mut parts = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' {
            parts.push(Part::Text(character));
            continue;
        }
        let mut precision = String::new();
        let has_precision = characters.next_if_eq(&'.').is_some();
        if has_precision {
            while let Some(digit) = characters.next_if(char::is_ascii_digit) {
                precision.push(digit);
            }
        }
        let digits = match (has_precision, precision.parse()) {
            (false, _) => 6,
            (true, Ok(digits)) => digits,
            (true, Err(_)) => {
                let why = if precision.is_empty() { "invalid syntax" } else { "value out of range" };
                let words = format!(
                    "could not parse formatting clause: error while parsing precision: error while converting precision \
                     to integer: strconv.Atoi: parsing {precision:?}: {why}"
                );
                return (parts, Some(words));
            }
        };
        match characters.next() {
            None => return (parts, Some("unexpected end of string".to_owned())),
            Some('%') => parts.push(Part::Text('%')),
            Some(_) if digits > MOST_DIGITS => {
                let words = format!("could not parse formatting clause: precision {digits} exceeds {MOST_DIGITS}");
                return (parts, Some(words));
            }
            Some(letter @ ('s' | 'd' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o')) => parts.push(Part::Clause(letter, digits)),
            Some(letter) => {
                let words = format!("could not parse formatting clause: unrecognized formatting clause \"{letter}\"");
                return (parts, Some(words));
            }
        }
    }
    (parts, None)
}

/// What keeps a clause from showing values of a type.
pub(super) fn refuses(letter: char, kind: &Type) -> Option<String> {
    use Type::{Bool, Bytes, Double, Duration, Dyn, Error, Int, Kind, List, Map, Null, String, Timestamp, Uint};
    let fits = match letter {
        'd' | 'o' => matches!(kind, Int | Uint),
        'f' | 'e' => matches!(kind, Double | String),
        'b' => matches!(kind, Int | Uint | Bool),
        'x' | 'X' => matches!(kind, Int | Uint | String | Bytes),
        _ => matches!(
            kind,
            List(_) | Map(_) | Int | Uint | Double | Bool | String | Timestamp | Bytes | Duration | Kind(_) | Null
        ),
    };
    let fits = fits || matches!(kind, Dyn | Error);
    (!fits).then(|| misfit(letter, kind))
}

/// That a clause cannot show a value of a type.
pub(super) fn misfit(letter: char, kind: &Type) -> String {
    let words = match letter {
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
        'o' => "octal clause can only be used on integers",
        _ => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and \
             timestamps"
        }
    };
    format!("error during formatting: {words}, was given {}", kind.name())
}
