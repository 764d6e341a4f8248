//! A rule's text -> tokens.
//!
//! Source: "Syntax" in cel-spec's language definition.

use super::ast::Literal;
use super::mistake::Mistake;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Literal(Literal),
    /// The digits of an integer, which get their sign before they are read, and whether they are unsigned.
    Digits(String, bool),
    Name(String),
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "?", ":", "<", ">", "+", "-", "*", "/",
    "%", "!", "=", "&", "|",
];

/// At most this many mistakes are told of.
const MOST_MISTAKES: usize = 30;

/// The tokens, each with how many characters into the text it begins and how it is written; and what is none.
pub(super) fn tokens(text: &str) -> (Vec<(usize, Token, String)>, Vec<Mistake>) {
    let characters: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { characters: &characters, at: 0 };
    let (mut tokens, mut mistakes) = (Vec::new(), Vec::new());
    loop {
        lexer.skip();
        let start = lexer.at;
        let token = match lexer.token() {
            Ok(token) => token,
            Err(mistake) => {
                // What can be no token is left out.
                lexer.at = lexer.at.max(start + 1).min(characters.len());
                if mistakes.len() < MOST_MISTAKES {
                    mistakes.push(mistake);
                }
                continue;
            }
        };
        let done = token == Token::End;
        let written = if done { "<EOF>".to_owned() } else { characters[start..lexer.at].iter().collect() };
        tokens.push((start, token, written));
        if done {
            return (tokens, mistakes);
        }
    }
}

struct Lexer<'a> {
    characters: &'a [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.characters.get(self.at + ahead).copied()
    }

    fn looks_at(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, character)| self.peek(ahead) == Some(character))
    }

    fn skip(&mut self) {
        loop {
            match self.peek(0) {
                Some(' ' | '\t' | '\n' | '\r' | '\u{c}') => self.at += 1,
                Some('/') if self.peek(1) == Some('/') => {
                    while self.peek(0).is_some_and(|character| character != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn token(&mut self) -> Result<Token, Mistake> {
        let Some(first) = self.peek(0) else { return Ok(Token::End) };
        if let Some(text) = self.quoted()? {
            return Ok(text);
        }
        if first.is_ascii_digit() || first == '.' && self.peek(1).is_some_and(|next| next.is_ascii_digit()) {
            return self.number();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let mut name = String::new();
            while let Some(character) = self.peek(0).filter(|next| next.is_ascii_alphanumeric() || *next == '_') {
                name.push(character);
                self.at += 1;
            }
            return Ok(match name.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Name(name),
            });
        }
        let sign = SIGNS.iter().find(|sign| self.looks_at(sign)).filter(|sign| !matches!(**sign, "=" | "&" | "|"));
        let Some(sign) = sign else {
            // Half of a sign is told of with what follows in place of the other half.
            let length = if matches!(first, '=' | '&' | '|') { 2 } else { 1 };
            let shown: String = self.characters.iter().skip(self.at).take(length).collect();
            return Err(Mistake::new(self.at, format!("Syntax error: token recognition error at: '{shown}'")));
        };
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    fn digits(&mut self, text: &mut String, fits: fn(&char) -> bool) {
        while let Some(digit) = self.peek(0).filter(fits) {
            text.push(digit);
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<Token, Mistake> {
        let start = self.at;
        let mut text = String::new();
        if self.looks_at("0x") && self.peek(2).is_some_and(|digit| digit.is_ascii_hexdigit()) {
            self.at += 2;
            text.push_str("0x");
            self.digits(&mut text, char::is_ascii_hexdigit);
        } else {
            self.digits(&mut text, char::is_ascii_digit);
            let whole = text.len();
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(|digit| digit.is_ascii_digit()) {
                text.push('.');
                self.at += 1;
                self.digits(&mut text, char::is_ascii_digit);
            }
            let signed = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if matches!(self.peek(0), Some('e' | 'E'))
                && self.peek(1 + signed).is_some_and(|digit| digit.is_ascii_digit())
            {
                text.extend(&self.characters[self.at..=self.at + signed]);
                self.at += 1 + signed;
                self.digits(&mut text, char::is_ascii_digit);
            }
            if text.len() > whole {
                let number = text.parse().ok().filter(|number: &f64| number.is_finite());
                let number = number.ok_or_else(|| Mistake::new(start, "invalid double literal"))?;
                return Ok(Token::Literal(Literal::Double(number)));
            }
        }
        let unsigned = matches!(self.peek(0), Some('u' | 'U'));
        self.at += usize::from(unsigned);
        Ok(Token::Digits(text, unsigned))
    }

    /// A text or bytes in quotes, with what may stand before them.
    fn quoted(&mut self) -> Result<Option<Token>, Mistake> {
        let start = self.at;
        let (mut raw, mut bytes, mut ahead) = (false, false, 0);
        loop {
            match self.peek(ahead) {
                Some('r' | 'R') if !raw => raw = true,
                Some('b' | 'B') if !bytes && !raw => bytes = true,
                Some('"' | '\'') => break,
                _ => return Ok(None),
            }
            ahead += 1;
        }
        self.at += ahead;
        let quote = self.characters[self.at];
        let long = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if long { 3 } else { 1 };
        self.at += width;
        let (mut text, mut content) = (String::new(), Vec::new());
        let unclosed = |lexer: &Self| {
            let rest: String = lexer.characters[start..lexer.at.min(lexer.characters.len())].iter().collect();
            Mistake::new(start, format!("Syntax error: token recognition error at: '{rest}'"))
        };
        loop {
            let Some(next) = self.peek(0) else { return Err(unclosed(self)) };
            if next == quote && (0..width).all(|ahead| self.peek(ahead) == Some(quote)) {
                self.at += width;
                break;
            }
            if !long && matches!(next, '\n' | '\r') {
                return Err(unclosed(self));
            }
            self.at += 1;
            if next != '\\' || raw {
                text.push(next);
                content.extend(next.to_string().bytes());
                continue;
            }
            let Some((character, byte)) = self.escape(bytes) else {
                self.at += 1;
                return Err(unclosed(self));
            };
            match byte {
                Some(byte) => content.push(byte),
                None => content.extend(character.to_string().bytes()),
            }
            text.push(character);
        }
        Ok(Some(Token::Literal(if bytes { Literal::Bytes(content) } else { Literal::String(text) })))
    }

    /// What stands after a backslash, which stays where it is if that is nothing; in bytes, numbers are bytes.
    fn escape(&mut self, bytes: bool) -> Option<(char, Option<u8>)> {
        let at = self.at;
        let letter = self.peek(0)?;
        let plain = match letter {
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\u{b}'),
            '\\' | '\'' | '"' | '`' | '?' => Some(letter),
            _ => None,
        };
        if let Some(plain) = plain {
            self.at += 1;
            return Some((plain, None));
        }
        let (digits, radix, from) = match letter {
            'x' | 'X' => (2, 16, at + 1),
            'u' if !bytes => (4, 16, at + 1),
            'U' if !bytes => (8, 16, at + 1),
            '0'..='3' => (3, 8, at),
            _ => return None,
        };
        let text: String = self.characters.iter().skip(from).take(digits).collect();
        let are_digits = text.len() == digits && text.chars().all(|digit| digit.is_digit(radix));
        let code = u32::from_str_radix(&text, radix).ok().filter(|_| are_digits)?;
        let character = char::from_u32(code)?;
        self.at = from + digits;
        Some((character, u8::try_from(code).ok().filter(|_| bytes)))
    }
}
