//! A rule in the Common Expression Language, and the schema of what it is about -> whether a value keeps the rule.
//!
//! The way of a rule: `lex` and `parse` (text -> tree, macros read as what they mean), `check` (every name and call has
//! a type), `cost` (what it may cost at worst), `evaluate` over values that borrow the object (`value`), with
//! `functions`.
//!
//! Invariants: what was checked is evaluated within a budget of work, whatever the object; depth is bounded where a
//! rule is read, so nothing here runs out of stack; nothing allocates more than the budget pays for.
//! Why not a crate: those there are have no type checker, which Kubernetes' refusals of bad rules are made of, and no
//! bound on what an evaluation costs.
//! Deliberately not here: messages in Protocol Buffers; the authorizer, which rules in definitions cannot ask.
//! Source: the language's definition (cel-spec), and "Common Expression Language in Kubernetes", whose words these are.

mod ast;
mod check;
mod clauses;
mod cost;
mod equal;
mod evaluate;
mod fold;
mod functions;
mod lex;
mod library;
mod mistake;
mod parse;
mod room;
mod shape;
mod types;
mod value;

pub(crate) use evaluate::Variables;
pub use functions::parse_duration;
pub(crate) use room::{Failure, MOST_PER_CALL, MOST_WORK, Spent};
pub(crate) use shape::{Field, Form, ListBy, Shape, escape};
pub(crate) use types::Type;
pub(crate) use value::Value;

use std::sync::Arc;

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refused {
    /// All mistakes, one under the other, each with the line it is in.
    Mistakes(String),
    /// A part that is the same every time cannot be evaluated.
    Constant(String),
}

/// A rule that was checked.
#[derive(Debug)]
pub(crate) struct Program {
    root: ast::Expr,
    types: check::Types,
    patterns: Arc<room::Patterns>,
}

impl Program {
    /// `self` has the shape given, and `oldSelf` too, or may be absent if it is optional.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(crate) fn compile(text: &str, own: &Arc<Shape>, optional_old: bool) -> Result<Self, Refused> {
        let source = mistake::Source::new(text);
        let mut root = parse::parse(text).map_err(|mistakes| Refused::Mistakes(source.show(mistakes)))?;
        let types = check::check(&mut root, own, optional_old).map_err(|mistakes| {
            // Within a rule, types are named after what the rule is about.
            let shown = source.show(mistakes);
            Refused::Mistakes(match &own.form {
                Form::Object { name, .. } => shown.replace(name.as_str(), "selfType"),
                _ => shown,
            })
        })?;
        let patterns = evaluate::constants(&root).map_err(|failure| Refused::Constant(failure.to_string()))?;
        Ok(Self { root, types, patterns: Arc::new(patterns) })
    }

    /// What the rule yields.
    pub(crate) fn kind(&self) -> Type {
        self.types.of(&self.root)
    }

    /// Whether the rule asks for what was there before.
    pub(crate) fn uses_old(&self) -> bool {
        self.types.uses_old
    }

    /// What an evaluation may cost at most, by what the schema says of sizes.
    pub(crate) fn most_cost(&self, own: &Shape) -> u64 {
        cost::most(&self.root, &self.types, own)
    }

    /// What the rule says of these values, and what was spent to find out, of `most_work` at the most.
    pub(crate) fn evaluate<'a>(
        &'a self,
        variables: Variables<'a>,
        most_work: u64,
    ) -> (Result<Value<'a>, Failure>, Spent) {
        let most = Spent { cost: MOST_PER_CALL, work: most_work.min(MOST_WORK) };
        evaluate::evaluate(&self.root, variables, room::Room::new(most, self.patterns.clone()))
    }
}

#[cfg(test)]
mod tests;
