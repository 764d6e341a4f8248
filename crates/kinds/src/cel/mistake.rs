//! Mistakes in a rule -> text that points at each of them.
//!
//! Source: what cel-go prints, which clients of Kubernetes see.

/// What is wrong, and how many characters into the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mistake {
    pub(super) at: usize,
    pub(super) words: String,
}

impl Mistake {
    pub(super) fn new(at: usize, words: impl Into<String>) -> Self {
        Self { at, words: words.into() }
    }
}

/// Bytes of what is shown of all mistakes, each of which shows a whole line.
const LONGEST: usize = 256 << 10;

/// A rule's text, as its mistakes are shown in it.
pub(super) struct Source<'a> {
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text }
    }

    pub(super) fn show(&self, mut mistakes: Vec<Mistake>) -> String {
        mistakes.sort_by_key(|mistake| mistake.at);
        let mut shown = String::new();
        for mistake in &mistakes {
            if shown.len() > LONGEST {
                break;
            }
            shown.push_str(if shown.is_empty() { "" } else { "\n" });
            shown.push_str(&self.one(mistake));
        }
        shown
    }

    fn one(&self, mistake: &Mistake) -> String {
        let (mut line, mut column, mut start) = (1, 0, 0);
        for (byte, character) in self.text.char_indices().take(mistake.at) {
            if character == '\n' {
                (line, column, start) = (line + 1, 0, byte + 1);
            } else {
                column += 1;
            }
        }
        let shown = self.text[start..].split('\n').next().unwrap_or_default().replace('\t', " ");
        let wide = |character: char| character.len_utf8() > 1;
        let mut pointer: String =
            shown.chars().take(column).map(|character| if wide(character) { '\u{ff0e}' } else { '.' }).collect();
        pointer.push(if shown.chars().nth(column).is_some_and(wide) { '\u{ff3e}' } else { '^' });
        format!("ERROR: <input>:{line}:{}: {}\n | {shown}\n | {pointer}", column + 1, mistake.words)
    }
}
