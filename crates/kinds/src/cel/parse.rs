//! Tokens -> the tree of a rule.
//!
//! Invariant: no tree is ever deeper than [`DEEPEST`], so what walks it, or drops it, may recurse. Chains of `&&` and
//! `||`, which people write long, are kept balanced.
//! Deliberately not here: more than the first mistake in syntax.

use super::ast::{Expr, Fold, Literal, Node, What};
use super::lex::{self, Token};
use super::mistake::Mistake;

const DEEPEST: usize = 200;
/// Characters of a rule.
const LONGEST: usize = 100_000;
/// Words that name nothing, beside those that mean something already.
pub(super) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// What can begin an expression, as messages list it.
const BEGINNINGS: &str =
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

pub(super) fn parse(text: &str) -> Result<Expr, Vec<Mistake>> {
    let length = text.chars().count();
    if length > LONGEST {
        let words = format!("expression code point size exceeds limit: size: {length}, limit {LONGEST}");
        return Err(vec![Mistake::new(0, words)]);
    }
    let (tokens, mut mistakes) = lex::tokens(text);
    let mut parser = Parser { tokens: &tokens, next: 0, ids: 0, depth: 0 };
    match parser.whole() {
        Ok(whole) if mistakes.is_empty() => return Ok(whole),
        Ok(_) => {}
        Err(mistake) => mistakes.push(mistake),
    }
    Err(mistakes)
}

fn too_deep(at: usize) -> Mistake {
    Mistake::new(at, format!("expression recursion limit exceeded: {DEEPEST}"))
}

/// Operators between two operands: as they are written, as functions, and how close they bind.
const BINARY: [(&str, &str, usize); 14] = [
    ("||", "_||_", 0),
    ("&&", "_&&_", 1),
    ("==", "_==_", RELATIONS),
    ("!=", "_!=_", RELATIONS),
    ("<=", "_<=_", RELATIONS),
    (">=", "_>=_", RELATIONS),
    ("<", "_<_", RELATIONS),
    (">", "_>_", RELATIONS),
    ("in", "@in", RELATIONS),
    ("+", "_+_", 3),
    ("-", "_-_", 3),
    ("*", "_*_", 4),
    ("/", "_/_", 4),
    ("%", "_%_", 4),
];
const RELATIONS: usize = 2;

struct Parser<'a> {
    tokens: &'a [(usize, Token, String)],
    next: usize,
    ids: usize,
    depth: usize,
}

type Parsed = Result<Expr, Mistake>;

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn at(&self) -> usize {
        self.tokens[self.next].0
    }

    fn written(&self) -> &str {
        &self.tokens[self.next].2
    }

    fn advance(&mut self) {
        self.next = (self.next + 1).min(self.tokens.len() - 1);
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Mistake> {
        if self.take(sign) {
            return Ok(());
        }
        Err(Mistake::new(self.at(), format!("Syntax error: missing '{sign}' at '{}'", self.written())))
    }

    /// What stands here is not what is expected: either too much, or something else.
    fn unexpected(&self, expected: &str) -> Mistake {
        let begins = |token: &Token| {
            matches!(token, Token::Literal(_) | Token::Digits(..) | Token::Name(_) | Token::Sign("(" | "[" | "{" | "."))
        };
        let next = self.tokens.get(self.next + 1).map(|(_, token, _)| token);
        let fits = match expected {
            "<EOF>" => next == Some(&Token::End),
            BEGINNINGS => next.is_some_and(begins),
            _ => false,
        };
        let what = if fits { "extraneous" } else { "mismatched" };
        Mistake::new(self.at(), format!("Syntax error: {what} input '{}' expecting {expected}", self.written()))
    }

    fn whole(&mut self) -> Parsed {
        let whole = self.expression()?;
        if *self.peek() == Token::End { Ok(whole) } else { Err(self.unexpected("<EOF>")) }
    }

    fn expr(&mut self, at: usize, node: Node) -> Parsed {
        self.ids += 1;
        let mut expr = Expr { id: self.ids - 1, at, depth: 0, node };
        let mut depth = 0;
        expr.parts(&mut |part| depth = depth.max(part.depth + 1));
        expr.depth = depth;
        if depth < DEEPEST { Ok(expr) } else { Err(too_deep(at)) }
    }

    fn call(&mut self, at: usize, function: &str, args: Vec<Expr>) -> Parsed {
        self.expr(at, Node::Call { function: function.to_owned(), target: None, args })
    }

    fn expression(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(too_deep(self.at()));
        }
        let mut whole = self.binary(0)?;
        let at = self.at();
        if self.take("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expression()?;
            whole = self.call(at, "_?_:_", vec![whole, yes, no])?;
        }
        self.depth -= 1;
        Ok(whole)
    }

    /// Operators that bind at least as close as `level` says.
    fn binary(&mut self, level: usize) -> Parsed {
        let mut left = self.unary()?;
        while let Some((_, function, binds)) = BINARY.iter().find(|(sign, _, binds)| *binds >= level && self.is(sign)) {
            let mut terms = vec![left];
            let mut places = Vec::new();
            // Others than `&&` and `||` are taken one by one, from the left.
            while self.operator() == Some(function) && (places.is_empty() || *binds < RELATIONS) {
                places.push(self.at());
                self.advance();
                terms.push(self.binary(binds + 1)?);
            }
            left = self.balanced(function, terms, &places)?;
        }
        Ok(left)
    }

    fn operator(&self) -> Option<&'static str> {
        BINARY.iter().find(|(sign, ..)| self.is(sign)).map(|(_, function, _)| *function)
    }

    fn balanced(&mut self, function: &str, mut terms: Vec<Expr>, places: &[usize]) -> Parsed {
        let middle = terms.len().div_ceil(2);
        let right = terms.split_off(middle);
        if right.is_empty() {
            return Ok(terms.swap_remove(0));
        }
        let left = self.balanced(function, terms, &places[..middle - 1])?;
        let right = self.balanced(function, right, &places[middle..])?;
        self.call(places[middle - 1], function, vec![left, right])
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        for (sign, function) in [("!", "!_"), ("-", "-_")] {
            let mut count = 0;
            while self.is(sign) {
                count += 1;
                self.advance();
            }
            if count == 0 {
                continue;
            }
            // The sign right before a number is the number's.
            if sign == "-" && matches!(self.peek(), Token::Digits(..) | Token::Literal(Literal::Double(_))) {
                let number = self.number(at, true)?;
                let operand = self.members(number)?;
                return if count % 2 == 0 { self.call(at, function, vec![operand]) } else { Ok(operand) };
            }
            let operand = self.member()?;
            return if count % 2 == 0 { Ok(operand) } else { self.call(at, function, vec![operand]) };
        }
        self.member()
    }

    fn number(&mut self, at: usize, negative: bool) -> Parsed {
        let literal = match self.peek().clone() {
            Token::Literal(Literal::Double(number)) => Literal::Double(if negative { -number } else { number }),
            Token::Digits(digits, unsigned) => {
                let (digits, radix) = digits.strip_prefix("0x").map_or((digits.as_str(), 10), |digits| (digits, 16));
                if unsigned {
                    let wrong = || Mistake::new(at, "invalid uint literal");
                    Literal::Uint(u64::from_str_radix(digits, radix).map_err(|_| wrong())?)
                } else {
                    let signed = if negative { format!("-{digits}") } else { digits.to_owned() };
                    Literal::Int(
                        i64::from_str_radix(&signed, radix).map_err(|_| Mistake::new(at, "invalid int literal"))?,
                    )
                }
            }
            _ => return Err(self.unexpected(BEGINNINGS)),
        };
        self.advance();
        self.expr(at, Node::Literal(literal))
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.members(primary)
    }

    fn members(&mut self, mut expr: Expr) -> Parsed {
        loop {
            let at = self.at();
            if self.take(".") {
                let optional = self.take("?");
                let Token::Name(name) = self.peek().clone() else {
                    return Err(Mistake::new(self.at(), "Syntax error: no viable alternative at input '.'"));
                };
                self.advance();
                let open = self.at();
                if !optional && self.take("(") {
                    let args = self.arguments(")")?;
                    expr = self.member_call(open, expr, name, args)?;
                } else {
                    expr = self.expr(at, Node::Select { operand: Box::new(expr), field: name, optional })?;
                }
            } else if self.take("[") {
                let function = if self.take("?") { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                expr = self.call(at, function, vec![expr, index])?;
            } else if self.is("{")
                && let Some(name) = expr.qualified()
            {
                self.advance();
                while !self.take("}") {
                    self.take("?");
                    let Token::Name(_) = self.peek() else { return Err(self.unexpected("'}'")) };
                    self.advance();
                    self.expect(":")?;
                    self.expression()?;
                    if !self.take(",") && !self.is("}") {
                        return Err(self.unexpected("'}'"));
                    }
                }
                expr = self.expr(at, Node::Message(name))?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn arguments(&mut self, close: &'static str) -> Result<Vec<Expr>, Mistake> {
        let mut args = Vec::new();
        while !self.take(close) {
            if !args.is_empty() && !self.take(",") {
                self.expect(close)?;
            }
            args.push(self.expression()?);
        }
        Ok(args)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.peek().clone() {
            Token::Literal(Literal::Double(_)) | Token::Digits(..) => self.number(at, false),
            Token::Literal(literal) => {
                self.advance();
                self.expr(at, Node::Literal(literal))
            }
            Token::Sign("(") => {
                self.advance();
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => self.list(at),
            Token::Sign("{") => self.map(at),
            Token::Sign(".") => {
                self.advance();
                self.named(at)
            }
            Token::Name(_) => self.named(at),
            _ => Err(self.unexpected(BEGINNINGS)),
        }
    }

    fn named(&mut self, at: usize) -> Parsed {
        let Token::Name(name) = self.peek().clone() else { return Err(self.unexpected("IDENTIFIER")) };
        if RESERVED.contains(&name.as_str()) {
            return Err(Mistake::new(at, format!("reserved identifier: {name}")));
        }
        self.advance();
        let open = self.at();
        if !self.take("(") {
            return self.expr(at, Node::Name(name));
        }
        let args = self.arguments(")")?;
        if name != "has" || args.len() != 1 {
            return self.call(open, &name, args);
        }
        match args.into_iter().next().map(|arg| (arg.at, arg.node)) {
            Some((_, Node::Select { operand, field, optional: false })) => {
                self.expr(open, Node::Has { operand, field })
            }
            other => Err(Mistake::new(other.map_or(open, |(at, _)| at), "invalid argument to has() macro")),
        }
    }

    fn list(&mut self, at: usize) -> Parsed {
        self.advance();
        let mut items = Vec::new();
        while !self.take("]") {
            let optional = self.take("?");
            items.push((self.expression()?, optional));
            if !self.take(",") && !self.is("]") {
                return Err(self.unexpected("{']', ','}"));
            }
        }
        self.expr(at, Node::List(items))
    }

    fn map(&mut self, at: usize) -> Parsed {
        self.advance();
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?, optional));
            if !self.take(",") && !self.is("}") {
                return Err(self.unexpected("{'}', ','}"));
            }
        }
        self.expr(at, Node::Map(entries))
    }

    /// `target.name(args)`, which may be a macro.
    fn member_call(&mut self, at: usize, target: Expr, name: String, args: Vec<Expr>) -> Parsed {
        let Some((what, variables, filtered)) = as_fold(&name, args.len()) else {
            return self.expr(at, Node::Call { function: name, target: Some(Box::new(target)), args });
        };
        let mut args = args.into_iter();
        let mut names = Vec::new();
        for arg in args.by_ref().take(variables) {
            match arg.node {
                Node::Name(name) if names.contains(&name) => {
                    return Err(Mistake::new(arg.at, format!("duplicate variable name: {name}")));
                }
                Node::Name(name) => names.push(name),
                _ if matches!((what, variables), (What::List | What::Filter, 1)) => {
                    return Err(Mistake::new(arg.at, "argument is not an identifier"));
                }
                _ => return Err(Mistake::new(arg.at, "argument must be a simple name")),
            }
        }
        let filter = if filtered { args.next() } else { None };
        let (Some(body), Some(key)) = (args.next(), names.first().cloned()) else {
            return Err(Mistake::new(at, format!("too few arguments to {name}")));
        };
        let value = names.get(1).cloned();
        self.expr(at, Node::Fold(Box::new(Fold { what, range: target, key, value, filter, body })))
    }
}

/// What a macro of this name and number of arguments makes, from how many variables, and whether there is a filter.
fn as_fold(name: &str, args: usize) -> Option<(What, usize, bool)> {
    Some(match (name, args) {
        ("all", 2 | 3) => (What::All, args - 1, false),
        ("exists", 2 | 3) => (What::Exists, args - 1, false),
        ("exists_one", 2 | 3) | ("existsOne", 3) => (What::ExistsOne, args - 1, false),
        ("map", 2 | 3) => (What::List, 1, args == 3),
        ("filter", 2) => (What::Filter, 1, false),
        ("transformList", 3 | 4) => (What::List, 2, args == 4),
        ("transformMap", 3 | 4) => (What::Map, 2, args == 4),
        ("transformMapEntry", 3 | 4) => (What::Entries, 2, args == 4),
        ("optMap", 2) => (What::Optional, 1, false),
        ("optFlatMap", 2) => (What::FlatOptional, 1, false),
        ("sortBy", 2) => (What::SortBy, 1, false),
        _ => return None,
    })
}
