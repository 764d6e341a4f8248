//! A tree -> the type of each of its parts, or all mistakes in it.
//!
//! Functions with dots in their names are found here: `ip.isCanonical(x)` becomes a call without a target.
//! Source: the type checker of cel-go, whose words these are.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Expr, Fold, Literal, Node, What};
use super::clauses::{self, Part};
use super::library;
use super::mistake::Mistake;
use super::shape::Shape;
use super::types::{Bindings, Type, more_general};
use crate::cel::functions;
use crate::custom;

/// At most this many mistakes are told of one rule.
const MOST: usize = 100;

/// What was found out about a tree.
#[derive(Debug)]
pub(super) struct Types {
    of: HashMap<usize, Type>,
    pub(super) uses_old: bool,
}

impl Types {
    pub(super) fn of(&self, expr: &Expr) -> Type {
        self.of.get(&expr.id).cloned().unwrap_or(Type::Dyn)
    }
}

pub(super) fn check(root: &mut Expr, own: &Arc<Shape>, optional_old: bool) -> Result<Types, Vec<Mistake>> {
    let own = Type::of(own);
    let old = if optional_old { Type::optional(own.clone()) } else { own.clone() };
    let scope = vec![("self".to_owned(), own), ("oldSelf".to_owned(), old)];
    let mut checker = Checker {
        scope,
        bindings: Bindings::default(),
        of: HashMap::new(),
        uses_old: false,
        mistakes: Vec::new(),
        mixed: Vec::new(),
        may_mix: false,
    };
    checker.check(root);
    if checker.bindings.is_exhausted() {
        return Err(vec![Mistake::new(root.at, "the types in this expression are too large")]);
    }
    if checker.mistakes.is_empty() {
        checker.mistakes.append(&mut checker.mixed);
        checker.literals(root);
    }
    if !checker.mistakes.is_empty() {
        checker.mistakes.truncate(MOST);
        return Err(checker.mistakes);
    }
    let Checker { bindings, of, uses_old, .. } = checker;
    let of = of.into_iter().map(|(id, kind)| (id, bindings.substitute(&kind, true))).collect();
    Ok(Types { of, uses_old })
}

struct Checker {
    /// Names with their types, the innermost last.
    scope: Vec<(String, Type)>,
    bindings: Bindings,
    of: HashMap<usize, Type>,
    uses_old: bool,
    mistakes: Vec<Mistake>,
    /// Lists and maps with values of several types, which are told of only if all else is right.
    mixed: Vec<Mistake>,
    /// Within the arguments of `format`, where they are wanted.
    may_mix: bool,
}

impl Checker {
    fn wrong(&mut self, at: usize, words: impl Into<String>) -> Type {
        if self.mistakes.len() < MOST {
            self.mistakes.push(Mistake::new(at, words));
        }
        Type::Error
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.wrong(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn mismatch(&mut self, at: usize, expected: &Type, found: &Type) -> Type {
        self.wrong(at, mismatched(expected, found))
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        let found = self.kind(expr);
        let found = self.bindings.substitute(&found, false);
        self.of.insert(expr.id, found.clone());
        found
    }

    fn kind(&mut self, expr: &mut Expr) -> Type {
        if let Some(name) = expr.qualified().filter(|name| name.contains('.'))
            && let Some(kind) = library::named_type(&name)
        {
            expr.node = Node::Name(name);
            return Type::Kind(kind.into());
        }
        let at = expr.at;
        match &mut expr.node {
            Node::Literal(literal) => literal_type(literal),
            Node::Name(name) => self.name(at, name),
            Node::Select { operand, field, optional } => {
                let operand = self.check(operand);
                self.field(at, &operand, field, *optional)
            }
            Node::Has { operand, field } => {
                let operand = self.check(operand);
                self.field(at, &operand, field, false);
                Type::Bool
            }
            Node::Call { function, target, args } => self.call(at, function, target, args),
            Node::List(items) => {
                let mut all = None;
                for (item, optional) in items {
                    let found = self.check(item);
                    let found = if *optional { self.unwrapped(item.at, found) } else { found };
                    all = Some(self.join(item.at, all, found));
                }
                Type::list(all.unwrap_or_else(|| self.bindings.fresh()))
            }
            Node::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let found = self.check(key);
                    keys = Some(self.join(key.at, keys, found));
                    let found = self.check(value);
                    let found = if *optional { self.unwrapped(value.at, found) } else { found };
                    values = Some(self.join(value.at, values, found));
                }
                let keys = keys.unwrap_or_else(|| self.bindings.fresh());
                Type::map(keys, values.unwrap_or_else(|| self.bindings.fresh()))
            }
            Node::Message(name) => {
                let name = name.clone();
                self.undeclared(at, &name)
            }
            Node::Fold(fold) => self.fold(at, fold),
        }
    }

    fn name(&mut self, at: usize, name: &str) -> Type {
        if let Some((_, kind)) = self.scope.iter().rfind(|(known, _)| known == name) {
            self.uses_old |= name == "oldSelf";
            return kind.clone();
        }
        match library::named_type(name) {
            Some(kind) => Type::Kind(kind.into()),
            None => self.undeclared(at, name),
        }
    }

    fn field(&mut self, at: usize, operand: &Type, field: &str, optional: bool) -> Type {
        let (target, is_optional) = match operand {
            Type::Optional(of) => ((**of).clone(), true),
            other => (other.clone(), false),
        };
        let found = match &target {
            Type::Map(of) => of.1.clone(),
            Type::Object(shape) => match shape.field(field) {
                Some(field) => Type::of(&field.shape),
                None => self.wrong(at, format!("undefined field '{field}'")),
            },
            Type::Param(_) => {
                self.bindings.assign(&[(&Type::Dyn, &target)]);
                Type::Dyn
            }
            other if other.is_dyn() => Type::Dyn,
            other => {
                self.wrong(at, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        if is_optional || optional { Type::optional(found) } else { found }
    }

    fn unwrapped(&mut self, at: usize, kind: Type) -> Type {
        match kind {
            Type::Optional(of) => (*of).clone(),
            other if other.is_dyn() => other,
            other => {
                self.mismatch(at, &Type::optional(other.clone()), &other);
                other
            }
        }
    }

    /// The type that both have, where all parts must have one.
    fn join(&mut self, at: usize, before: Option<Type>, found: Type) -> Type {
        let Some(before) = before else { return found };
        let fits = self.bindings.assign(&[(&before, &found)]);
        // Stricter than what fits: neither null nor what is dynamic goes with anything else.
        let is_same = fits && self.bindings.substitute(&before, false) == self.bindings.substitute(&found, false);
        if is_same || fits && self.may_mix {
            return more_general(&before, &found);
        }
        if !self.may_mix && self.mixed.len() < MOST {
            self.mixed.push(Mistake::new(at, mismatched(&before, &found)));
        }
        Type::Dyn
    }

    fn call(&mut self, at: usize, function: &mut String, target: &mut Option<Box<Expr>>, args: &mut [Expr]) -> Type {
        let may_mix = self.may_mix;
        self.may_mix |= function == "format";
        let mut kinds: Vec<Type> = args.iter_mut().map(|arg| self.check(arg)).collect();
        self.may_mix = may_mix;
        if matches!(function.as_str(), "_&&_" | "_||_") {
            for (arg, kind) in args.iter().zip(&kinds) {
                if !self.bindings.assign(&[(kind, &Type::Bool)]) {
                    self.mismatch(arg.at, &Type::Bool, kind);
                }
            }
            return Type::Bool;
        }
        let whole = target.as_ref().and_then(|target| Some(format!("{}.{function}", target.qualified()?)));
        if let Some(whole) = whole.filter(|name| library::overloads(name).is_some()) {
            *function = whole;
            *target = None;
        }
        if let Some(target) = target {
            let kind = self.check(target);
            kinds.insert(0, kind);
        }
        let Some(overloads) = library::overloads(function) else { return self.undeclared(at, function) };
        let mut result: Option<Type> = None;
        for overload in overloads {
            if overload.is_member != target.is_some() || overload.params.len() != kinds.len() {
                continue;
            }
            let generic = [self.bindings.fresh(), self.bindings.fresh()];
            let params: Vec<Type> = overload.params.iter().map(|param| instance(param, &generic)).collect();
            let pairs: Vec<(&Type, &Type)> = kinds.iter().zip(&params).collect();
            if self.bindings.assign(&pairs) {
                let found = self.bindings.substitute(&instance(&overload.result, &generic), false);
                result = Some(match result {
                    Some(before) if !matches!(before, Type::Dyn) && before != found => Type::Dyn,
                    Some(before) => before,
                    None => found,
                });
            }
        }
        match result {
            Some(result) => result,
            None => self.no_overload(at, function, &kinds, target.is_some()),
        }
    }

    fn no_overload(&mut self, at: usize, function: &str, kinds: &[Type], is_member: bool) -> Type {
        let shown: Vec<String> = kinds.iter().map(|kind| self.bindings.substitute(kind, true).to_string()).collect();
        let applied = match (is_member, shown.as_slice()) {
            (true, [target, args @ ..]) => format!("{target}.({})", args.join(", ")),
            (_, all) => format!("({})", all.join(", ")),
        };
        self.wrong(at, format!("found no matching overload for '{function}' applied to '{applied}'"))
    }

    fn fold(&mut self, at: usize, fold: &mut Fold) -> Type {
        let range = self.check(&mut fold.range);
        let range = self.bindings.substitute(&range, false);
        let (key, value) = self.variables(&range, fold);
        let depth = self.scope.len();
        self.scope.push((fold.key.clone(), key.clone()));
        self.scope.extend(fold.value.clone().map(|name| (name, value.clone())));
        let filter = fold.filter.as_mut().map(|filter| (filter.at, self.check(filter)));
        let body = self.check(&mut fold.body);
        self.scope.truncate(depth);
        // What upstream writes these macros as, and so tells of when they do not fit.
        let is_bool = |checker: &mut Self, kind: &Type, then: &Type| {
            if !checker.bindings.assign(&[(kind, &Type::Bool)]) {
                checker.no_overload(at, "_?_:_", &[kind.clone(), then.clone(), then.clone()], false);
            }
        };
        match fold.what {
            What::All | What::Exists => {
                if !self.bindings.assign(&[(&body, &Type::Bool)]) {
                    self.mismatch(fold.body.at, &Type::Bool, &body);
                }
                Type::Bool
            }
            What::ExistsOne => {
                is_bool(self, &body, &Type::Int);
                Type::Bool
            }
            What::Filter => {
                let made = Type::list(key);
                is_bool(self, &body, &made);
                made
            }
            What::List => {
                let made = Type::list(body);
                filter.into_iter().for_each(|(_, filter)| is_bool(self, &filter, &made));
                made
            }
            What::Map => {
                let made = Type::map(key, body);
                filter.into_iter().for_each(|(_, filter)| is_bool(self, &filter, &made));
                made
            }
            What::Entries => {
                let any = Type::map(self.bindings.fresh(), self.bindings.fresh());
                if !self.bindings.assign(&[(&body, &any)]) {
                    return self.no_overload(at, "cel.@mapInsert", &[any, body], false);
                }
                filter.into_iter().for_each(|(_, filter)| is_bool(self, &filter, &any));
                self.bindings.substitute(&any, false)
            }
            What::Optional => Type::optional(body),
            What::FlatOptional => {
                let any = Type::optional(self.bindings.fresh());
                if !self.bindings.assign(&[(&body, &any)]) {
                    return self.no_overload(at, "_?_:_", &[Type::Bool, body, any], false);
                }
                self.bindings.substitute(&any, false)
            }
            What::SortBy => {
                if !functions::is_ordered(&self.bindings.substitute(&body, true)) {
                    let kinds = [Type::list(key), Type::list(body)];
                    return self.no_overload(at, "@sortByAssociatedKeys", &kinds, true);
                }
                Type::list(key)
            }
        }
    }

    /// What the variables of a macro over this range are.
    fn variables(&mut self, range: &Type, fold: &Fold) -> (Type, Type) {
        if matches!(fold.what, What::Optional | What::FlatOptional) {
            let any = Type::optional(self.bindings.fresh());
            if !self.bindings.assign(&[(range, &any)]) {
                let kind = range.clone();
                self.no_overload(fold.range.at, "hasValue", &[kind], true);
                return (Type::Error, Type::Error);
            }
            let Type::Optional(of) = self.bindings.substitute(&any, false) else { return (Type::Dyn, Type::Dyn) };
            return ((*of).clone(), Type::Dyn);
        }
        match range {
            Type::List(of) if fold.value.is_some() => (Type::Int, (**of).clone()),
            Type::List(of) => ((**of).clone(), Type::Dyn),
            Type::Map(of) => (of.0.clone(), of.1.clone()),
            Type::Param(_) => {
                self.bindings.assign(&[(&Type::Dyn, range)]);
                (Type::Dyn, Type::Dyn)
            }
            other if other.is_dyn() => (Type::Dyn, Type::Dyn),
            other => {
                let words = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.wrong(fold.range.at, words);
                (Type::Error, Type::Error)
            }
        }
    }

    /// Texts that stand in the rule itself, and that would be refused whenever it is asked.
    fn literals(&mut self, root: &Expr) {
        root.each(&mut |part| {
            let Node::Call { function, target, args } = &part.node else { return };
            if let (Some(Node::Literal(Literal::String(text))), [Expr { node: Node::List(values), .. }]) =
                (target.as_ref().map(|target| &target.node), args.as_slice())
                && function == "format"
            {
                self.format(part.at, text, values);
            }
            let Some(Expr { at, node: Node::Literal(literal), .. }) = args.last() else { return };
            let is_wrong = match (function.as_str(), target, literal) {
                ("matches", _, Literal::String(pattern)) => {
                    custom::compile_pattern(pattern, custom::LARGEST_PATTERN).is_err()
                }
                ("duration", None, Literal::String(text)) => functions::parse_duration(text).is_none(),
                ("duration", None, Literal::Int(_)) => true,
                ("timestamp", None, Literal::String(text)) => functions::parse_time(text).is_none(),
                _ => false,
            };
            if is_wrong {
                self.wrong(*at, format!("invalid {function} argument"));
            }
        });
    }

    /// A text to `format`, and the values that it is given.
    fn format(&mut self, at: usize, text: &str, values: &[(Expr, bool)]) {
        let (parts, wrong) = clauses::parts(text);
        let mut shown = 0;
        for part in parts {
            let Part::Clause(letter, _) = part else { continue };
            let Some((value, _)) = values.get(shown) else {
                self.wrong(at, format!("index {shown} out of range"));
                return;
            };
            shown += 1;
            let kind = self.bindings.substitute(self.of.get(&value.id).unwrap_or(&Type::Dyn), true);
            if let Some(words) = clauses::refuses(letter, &kind) {
                self.wrong(value.at, words);
                return;
            }
        }
        match wrong {
            Some(words) => _ = self.wrong(at, words),
            None if values.len() > shown => {
                let words =
                    format!("too many arguments supplied to string.format (expected {shown}, got {})", values.len());
                self.wrong(at, words);
            }
            None => {}
        }
    }
}

fn mismatched(expected: &Type, found: &Type) -> String {
    format!("expected type '{expected}' but found '{found}'")
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// A declared type with `A` and `B` in place.
fn instance(declared: &Type, generic: &[Type; 2]) -> Type {
    match declared {
        Type::Param(number) => generic[*number].clone(),
        Type::List(of) => Type::list(instance(of, generic)),
        Type::Optional(of) => Type::optional(instance(of, generic)),
        Type::Kind(of) => Type::Kind(Arc::new(instance(of, generic))),
        Type::Map(of) => Type::map(instance(&of.0, generic), instance(&of.1, generic)),
        other => other.clone(),
    }
}
