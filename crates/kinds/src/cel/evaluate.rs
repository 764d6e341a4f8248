//! A checked tree and its variables -> what it yields, within a budget.
//!
//! Source: the language's definition.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value as Json;

use super::ast::{Expr, Literal, Node};
use super::room::{Failure, Patterns, Room, Spent, wrong_pattern};
use super::shape::Shape;
use super::types::Type;
use super::value::{Key, Map, Text, Value};
use super::{cost, functions, library};
use crate::custom::{LARGEST_PATTERN, Pattern, compile_pattern};

/// What a rule is about.
#[derive(Clone, Copy)]
pub(crate) struct Variables<'a> {
    pub(crate) own: &'a Json,
    pub(crate) old: Option<&'a Json>,
    pub(crate) old_is_optional: bool,
    pub(crate) shape: &'a Arc<Shape>,
}

/// What the expression yields, and what was spent on it.
pub(super) fn evaluate<'a>(
    root: &'a Expr,
    variables: Variables<'a>,
    room: Room,
) -> (Result<Value<'a>, Failure>, Spent) {
    let mut run = Run { variables, locals: Vec::new(), room };
    let found = run.value(root);
    (found, run.room.spent)
}

/// The regular expressions that stand in a rule. Conversions of what stands in it are tried, too.
///
/// # Errors
/// What would be wrong every time.
pub(super) fn constants(root: &Expr) -> Result<Patterns, Failure> {
    let mut patterns = Patterns::new();
    let mut failure = None;
    root.each(&mut |part| {
        let Node::Call { function, target, args } = &part.node else { return };
        let found = match (function.as_str(), args.as_slice()) {
            ("matches", [.., Expr { node: Node::Literal(Literal::String(text)), .. }])
            | ("find" | "findAll", [Expr { node: Node::Literal(Literal::String(text)), .. }, ..]) => {
                let known = patterns.entry(text.clone()).or_insert_with(|| Pattern::new(text));
                compile_pattern(&known.text, LARGEST_PATTERN).map(|_| ()).map_err(|why| wrong_pattern(text, &why))
            }
            (
                "bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint",
                [Expr { node: Node::Literal(literal), .. }],
            ) if target.is_none() => {
                let mut room = Room::new(Spent { cost: u64::MAX, work: u64::MAX }, Arc::default());
                functions::call(&mut room, function, &[literal_value(literal)]).map(|_| ())
            }
            _ => Ok(()),
        };
        failure = failure.take().or(found.err());
    });
    failure.map_or(Ok(patterns), Err)
}

pub(super) struct Run<'a> {
    variables: Variables<'a>,
    pub(super) locals: Vec<(&'a str, Value<'a>)>,
    pub(super) room: Room,
}

pub(super) type Found<'a> = Result<Value<'a>, Failure>;

impl<'a> Run<'a> {
    pub(super) fn value(&mut self, expr: &'a Expr) -> Found<'a> {
        self.room.work(1)?;
        let found = self.found(expr)?;
        self.room.work_on(&found)?;
        Ok(found)
    }

    fn found(&mut self, expr: &'a Expr) -> Found<'a> {
        match &expr.node {
            Node::Literal(literal) => Ok(literal_value(literal)),
            Node::Name(name) => {
                self.room.charge(1)?;
                self.name(name)
            }
            Node::Select { operand, field, optional } => {
                let operand = self.value(operand)?;
                self.room.charge(1)?;
                select(operand, field, *optional)
            }
            Node::Has { operand, field } => {
                let operand = self.value(operand)?;
                has(&operand, field).map(Value::Bool)
            }
            Node::Call { function, target, args } => self.call(function, target.as_deref(), args),
            Node::List(items) => {
                let mut made = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    match (self.value(item)?, optional) {
                        (Value::Optional(inner), true) => made.extend(inner.map(Rc::unwrap_or_clone)),
                        (value, _) => made.push(value),
                    }
                }
                self.room.charge(cost::LIST)?;
                Ok(Value::list(made))
            }
            Node::Map(entries) => {
                let mut made = BTreeMap::new();
                for (key, value, optional) in entries {
                    let key = self.value(key)?;
                    let value = match (self.value(value)?, optional) {
                        (Value::Optional(None), true) => continue,
                        (Value::Optional(Some(inner)), true) => Rc::unwrap_or_clone(inner),
                        (value, _) => value,
                    };
                    // The last of equal keys counts.
                    made.insert(entry_key(&key)?, value);
                }
                self.room.charge(cost::MAP)?;
                Ok(Value::Map(Map::Made(Rc::new(made))))
            }
            Node::Message(_) => Err(Failure::NoOverload),
            Node::Fold(fold) => self.fold(fold),
        }
    }

    fn name(&self, name: &'a str) -> Found<'a> {
        if let Some((_, value)) = self.locals.iter().rfind(|(local, _)| *local == name) {
            return Ok(value.clone());
        }
        let Variables { own, old, old_is_optional, shape } = self.variables;
        match (name, old) {
            ("self", _) => Value::held(own, shape),
            ("oldSelf", None) if old_is_optional => Ok(Value::Optional(None)),
            ("oldSelf", Some(old)) if old_is_optional => Ok(Value::some(Value::held(old, shape)?)),
            ("oldSelf", Some(old)) => Value::held(old, shape),
            _ => match library::named_type(name) {
                Some(kind) => Ok(Value::Type(kind)),
                None => Err(Failure::Other(format!("no such attribute(s): {name}"))),
            },
        }
    }

    fn call(&mut self, function: &'a str, target: Option<&'a Expr>, args: &'a [Expr]) -> Found<'a> {
        match (function, args) {
            ("_?_:_", [condition, yes, no]) => match self.value(condition)? {
                Value::Bool(holds) => return self.value(if holds { yes } else { no }),
                _ => return Err(Failure::NoOverload),
            },
            ("_&&_", [left, right]) => return self.logical(left, right, false),
            ("_||_", [left, right]) => return self.logical(left, right, true),
            ("or" | "orValue", [other]) if let Some(target) = target => return self.either(function, target, other),
            _ => {}
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.value(arg)?);
        }
        // Long texts are looked through to find out what they cost.
        let bytes: usize = values.iter().filter_map(Value::as_text).map(str::len).sum();
        self.room.work_through(bytes)?;
        // Before, so that nothing dear is done that was not paid for; what depends on the result comes after.
        self.room.charge(cost::of_call(function, &values))?;
        let result = functions::call(&mut self.room, function, &values)?;
        self.room.charge(cost::of_result(function, &result))?;
        Ok(result)
    }

    /// `target.or(other)` or `target.orValue(other)`: nobody looks at the other where the target has a value.
    fn either(&mut self, function: &str, target: &'a Expr, other: &'a Expr) -> Found<'a> {
        match self.value(target)? {
            Value::Optional(None) => self.value(other),
            Value::Optional(Some(inner)) if function == "orValue" => Ok(Rc::unwrap_or_clone(inner)),
            found => Ok(found),
        }
    }

    /// What one side decides is decided, whatever is wrong with the other.
    fn logical(&mut self, left: &'a Expr, right: &'a Expr, decides: bool) -> Found<'a> {
        let mut failure = None;
        for side in [left, right] {
            match self.value(side) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Err(Failure::TooExpensive) => return Err(Failure::TooExpensive),
                Ok(_) => failure = failure.or(Some(Failure::NoOverload)),
                Err(other) => failure = failure.or(Some(other)),
            }
        }
        failure.map_or(Ok(Value::Bool(!decides)), Err)
    }
}

pub(super) fn entry_key(key: &Value<'_>) -> Result<Key, Failure> {
    Key::of(key).ok_or_else(|| Failure::Other(format!("unsupported key type: {}", key.kind().name())))
}

fn literal_value(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(number) => Value::Int(*number),
        Literal::Uint(number) => Value::Uint(*number),
        Literal::Double(number) => Value::Double(*number),
        Literal::String(text) => Value::String(Text::Held(text)),
        Literal::Bytes(bytes) => Value::Bytes(bytes.as_slice().into()),
    }
}

fn select<'a>(operand: Value<'a>, field: &str, optional: bool) -> Found<'a> {
    match operand {
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => match select(Rc::unwrap_or_clone(inner), field, true)? {
            found @ Value::Optional(_) => Ok(found),
            found => Ok(Value::some(found)),
        },
        Value::Map(map) => match (map.field(field).transpose()?, optional) {
            (Some(found), true) => Ok(Value::some(found)),
            (None, true) => Ok(Value::Optional(None)),
            (Some(found), false) => Ok(found),
            (None, false) => Err(Failure::Other(format!("no such key: {field}"))),
        },
        _ => Err(Failure::NoOverload),
    }
}

fn has(operand: &Value<'_>, field: &str) -> Result<bool, Failure> {
    match operand {
        Value::Map(map) => Ok(map.has(field)),
        Value::Optional(None) => Ok(false),
        Value::Optional(Some(inner)) => has(inner, field),
        _ => Err(Failure::NoOverload),
    }
}

/// `whole[key]`, or `whole[?key]`.
pub(super) fn index<'a>(whole: &Value<'a>, key: &Value<'a>, optional: bool) -> Found<'a> {
    let found = match whole {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => {
            return match index(inner, key, true)? {
                found @ Value::Optional(_) => Ok(found),
                found => Ok(Value::some(found)),
            };
        }
        Value::Map(map) => map.get(key).transpose()?,
        Value::List(list) => {
            let Some(Key::Int(place)) = Key::of(key) else { return Err(Failure::NoOverload) };
            usize::try_from(place).ok().and_then(|place| list.get(place)).transpose()?
        }
        _ => return Err(Failure::NoOverload),
    };
    match (found, optional) {
        (Some(found), true) => Ok(Value::some(found)),
        (None, true) => Ok(Value::Optional(None)),
        (Some(found), false) => Ok(found),
        (None, false) => {
            let what = if matches!(whole, Value::List(_)) { "index out of bounds" } else { "no such key" };
            Err(Failure::Other(format!("{what}: {}", functions::shown(key))))
        }
    }
}

/// The type that `type(value)` yields.
pub(super) fn kind_of<'a>(value: &Value<'a>) -> Value<'a> {
    Value::Type(match value {
        Value::Type(_) => Type::Kind(Type::Dyn.into()),
        other => other.kind(),
    })
}
