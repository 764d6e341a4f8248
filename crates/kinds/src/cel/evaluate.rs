//! A checked tree and its variables -> what it yields, within a budget.
//!
//! Two things are counted: the cost, as upstream reckons it and tells of it; and the work, which is what this program
//! really does, where upstream reckons it as nothing. Running out of either ends the evaluation.
//! Source: the language's definition; `interpreter/runtimecost.go` of cel-go.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value as Json;

use super::ast::{Expr, Fold, Literal, Node, What};
use super::shape::Shape;
use super::types::Type;
use super::value::{Key, Map, Text, Value};
use super::{cost, equal, functions, library};

/// Items looked at, copied or compared in one evaluation.
const MOST_WORK: u64 = 2_000_000;
/// How much of a text is looked through in the time that one item takes.
const BYTES_A_STEP: u64 = 128;
/// What compiling a regular expression is worth, for each of its characters.
const WORK_PER_PATTERN_CHARACTER: u64 = 200;

/// What a rule is about.
#[derive(Clone, Copy)]
pub(crate) struct Variables<'a> {
    pub(crate) own: &'a Json,
    pub(crate) old: Option<&'a Json>,
    pub(crate) old_is_optional: bool,
    pub(crate) shape: &'a Arc<Shape>,
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    NoOverload,
    TooExpensive,
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOverload => f.write_str("no such overload"),
            Self::TooExpensive => f.write_str("operation cancelled: actual cost limit exceeded"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// What is left to spend.
pub(super) struct Room {
    cost: u64,
    most: u64,
    work: u64,
    patterns: HashMap<String, Regex>,
}

impl Room {
    fn charge(&mut self, cost: u64) -> Result<(), Failure> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.most { Err(Failure::TooExpensive) } else { Ok(()) }
    }

    /// Asks before that much is done.
    pub(super) fn work(&mut self, amount: u64) -> Result<(), Failure> {
        self.work = self.work.saturating_add(amount);
        if self.work > MOST_WORK { Err(Failure::TooExpensive) } else { Ok(()) }
    }

    /// A regular expression, compiled once an evaluation.
    pub(super) fn pattern(&mut self, text: &str) -> Result<Regex, Failure> {
        if let Some(pattern) = self.patterns.get(text) {
            return Ok(pattern.clone());
        }
        self.work(WORK_PER_PATTERN_CHARACTER.saturating_mul(text.len() as u64))?;
        let pattern = crate::custom::compile_pattern(text)
            .map_err(|why| Failure::Other(format!("error parsing regexp: {why}: `{text}`")))?;
        self.patterns.insert(text.to_owned(), pattern.clone());
        Ok(pattern)
    }
}

/// What the expression yields, and what it cost.
pub(super) fn evaluate<'a>(root: &'a Expr, variables: Variables<'a>, most: u64) -> (Result<Value<'a>, Failure>, u64) {
    let room = Room { cost: 0, most, work: 0, patterns: HashMap::new() };
    let mut run = Run { variables, locals: Vec::new(), room };
    let found = run.value(root);
    (found, run.room.cost)
}

/// Conversions of what stands in the rule itself, which are the same every time, and regular expressions.
///
/// # Errors
/// What would be wrong every time.
pub(super) fn constants(root: &Expr) -> Result<(), Failure> {
    let mut failure = None;
    root.each(&mut |part| {
        let Node::Call { function, target, args } = &part.node else { return };
        let mut room = Room { cost: 0, most: u64::MAX, work: 0, patterns: HashMap::new() };
        let found = match (function.as_str(), args.as_slice()) {
            ("find" | "findAll", [Expr { node: Node::Literal(Literal::String(pattern)), .. }, ..]) => {
                room.pattern(pattern).map(|_| ())
            }
            (
                "bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint",
                [Expr { node: Node::Literal(literal), .. }],
            ) if target.is_none() => functions::call(&mut room, function, &[literal_value(literal)]).map(|_| ()),
            _ => Ok(()),
        };
        failure = failure.take().or(found.err());
    });
    failure.map_or(Ok(()), Err)
}

struct Run<'a> {
    variables: Variables<'a>,
    locals: Vec<(&'a str, Value<'a>)>,
    room: Room,
}

type Found<'a> = Result<Value<'a>, Failure>;

impl<'a> Run<'a> {
    fn value(&mut self, expr: &'a Expr) -> Found<'a> {
        let found = self.found(expr)?;
        // Bytes are decoded, or copied, each time that they are named.
        if let Value::Bytes(bytes) = &found {
            self.room.work(bytes.len() as u64 / BYTES_A_STEP)?;
        }
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
            _ => {}
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.value(arg)?);
        }
        // Long texts are looked through to find out what they cost.
        let bytes: usize = values.iter().filter_map(Value::as_text).map(str::len).sum();
        self.room.work(bytes as u64 / BYTES_A_STEP)?;
        // Before, so that nothing dear is done that was not paid for; what depends on the result comes after.
        self.room.charge(cost::of_call(function, &values))?;
        let result = functions::call(&mut self.room, function, &values)?;
        self.room.charge(cost::of_result(function, &result))?;
        Ok(result)
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

    fn fold(&mut self, fold: &'a Fold) -> Found<'a> {
        let range = self.value(&fold.range)?;
        if matches!(fold.what, What::Optional | What::FlatOptional) {
            let Value::Optional(inner) = range else { return Err(Failure::NoOverload) };
            let Some(inner) = inner else { return Ok(Value::Optional(None)) };
            self.locals.push((&fold.key, Rc::unwrap_or_clone(inner)));
            let body = self.value(&fold.body);
            self.locals.pop();
            return Ok(if fold.what == What::Optional { Value::some(body?) } else { body? });
        }
        let mut state = State::new(fold.what);
        self.room.charge(cost::of_fold(fold.what))?;
        let count = match &range {
            Value::List(list) => list.len(),
            Value::Map(map) => map.len(),
            _ => return Err(Failure::NoOverload),
        };
        self.room.work(count as u64)?;
        let keys = if let Value::Map(map) = &range { map.keys() } else { Vec::new() };
        let depth = self.locals.len();
        for index in 0..count {
            let (key, value) = match &range {
                Value::List(list) => {
                    let Some(item) = list.get(index) else { break };
                    let place = Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
                    if fold.value.is_some() { (place, Some(item?)) } else { (item?, None) }
                }
                Value::Map(map) => {
                    let Some(key) = keys.get(index).cloned() else { break };
                    let value = if fold.value.is_some() { map.get(&key).transpose()? } else { None };
                    (key, value)
                }
                _ => break,
            };
            self.locals.push((&fold.key, key.clone()));
            if let (Some(name), Some(value)) = (&fold.value, value) {
                self.locals.push((name, value));
            }
            let step = self.step(fold, key, &mut state);
            self.locals.truncate(depth);
            step?;
            if state.is_done() {
                break;
            }
        }
        state.result(&mut self.room)
    }

    /// One item of a macro's range.
    fn step(&mut self, fold: &'a Fold, key: Value<'a>, state: &mut State<'a>) -> Result<(), Failure> {
        self.room.charge(cost::of_step(fold.what))?;
        if let Some(filter) = &fold.filter {
            match self.value(filter)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(()),
                _ => return Err(Failure::NoOverload),
            }
        }
        let body = self.value(&fold.body);
        match fold.what {
            What::All => state.meet(body, false)?,
            What::Exists => state.meet(body, true)?,
            What::ExistsOne => match body? {
                Value::Bool(holds) => state.count += u64::from(holds),
                _ => return Err(Failure::NoOverload),
            },
            What::Filter => match body? {
                Value::Bool(true) => {
                    self.room.charge(cost::APPEND)?;
                    state.items.push(key);
                }
                Value::Bool(false) => {}
                _ => return Err(Failure::NoOverload),
            },
            What::SortBy => {
                state.sort_keys.push(body?);
                let item = key;
                state.items.push(item);
            }
            What::Map => insert(&mut state.entries, &key, body?)?,
            What::Entries => {
                let Value::Map(made) = body? else { return Err(Failure::NoOverload) };
                for key in made.keys() {
                    let Some(value) = made.get(&key) else { continue };
                    insert(&mut state.entries, &key, value?)?;
                }
            }
            What::List | What::Optional | What::FlatOptional => {
                self.room.charge(cost::APPEND)?;
                state.items.push(body?);
            }
        }
        Ok(())
    }
}

/// How far a macro has come.
struct State<'a> {
    what: What,
    /// Of `all` and `exists`: it is settled.
    settled: bool,
    failure: Option<Failure>,
    count: u64,
    items: Vec<Value<'a>>,
    sort_keys: Vec<Value<'a>>,
    entries: BTreeMap<Key, Value<'a>>,
}

impl<'a> State<'a> {
    fn new(what: What) -> Self {
        Self {
            what,
            settled: false,
            failure: None,
            count: 0,
            items: Vec::new(),
            sort_keys: Vec::new(),
            entries: BTreeMap::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.settled
    }

    /// As `&&` and `||` do: a failure counts only if nothing settles it.
    fn meet(&mut self, body: Found<'a>, settles: bool) -> Result<(), Failure> {
        match body {
            Ok(Value::Bool(value)) => self.settled |= value == settles,
            Err(Failure::TooExpensive) => return Err(Failure::TooExpensive),
            Ok(_) => self.failure = self.failure.take().or(Some(Failure::NoOverload)),
            Err(other) => self.failure = self.failure.take().or(Some(other)),
        }
        Ok(())
    }

    fn result(self, room: &mut Room) -> Found<'a> {
        match self.what {
            What::All | What::Exists => match self.failure {
                Some(failure) if !self.settled => Err(failure),
                _ => Ok(Value::Bool(self.settled == (self.what == What::Exists))),
            },
            What::ExistsOne => Ok(Value::Bool(self.count == 1)),
            What::Map | What::Entries => Ok(Value::Map(Map::Made(Rc::new(self.entries)))),
            What::SortBy => functions::sort_by(room, self.items, &self.sort_keys),
            What::List | What::Filter | What::Optional | What::FlatOptional => Ok(Value::list(self.items)),
        }
    }
}

fn entry_key(key: &Value<'_>) -> Result<Key, Failure> {
    Key::of(key).ok_or_else(|| Failure::Other(format!("unsupported key type: {}", key.kind().name())))
}

fn insert<'a>(entries: &mut BTreeMap<Key, Value<'a>>, key: &Value<'a>, value: Value<'a>) -> Result<(), Failure> {
    if entries.insert(entry_key(key)?, value).is_some() {
        return Err(Failure::Other(format!("insert failed: key {} already exists", functions::shown(key))));
    }
    Ok(())
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
        Value::Map(map) => Ok(map.field(field).is_some()),
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

/// `one + other` of lists, of which those that are sets or maps stay so.
pub(super) fn join<'a>(room: &mut Room, one: &Value<'a>, other: &Value<'a>) -> Found<'a> {
    use super::shape::ListBy;
    use super::value::List;
    let (Value::List(left), Value::List(right)) = (one, other) else { return Err(Failure::NoOverload) };
    room.work((left.len() + right.len()) as u64)?;
    let mut items = left.iter().collect::<Result<Vec<_>, _>>()?;
    let keys: Option<&[String]> = match left {
        List::Held { by: ListBy::Keys(keys), .. } => Some(keys),
        List::Held { by: ListBy::Value, .. } => Some(&[]),
        _ => None,
    };
    for item in right.iter() {
        let item = item?;
        let mut same = None;
        if let Some(keys) = keys {
            for (place, known) in items.iter().enumerate() {
                if equal::same_keys(room, keys, known, &item)?
                    && (!keys.is_empty() || equal::equal(room, known, &item)?)
                {
                    same = Some(place);
                    break;
                }
            }
        }
        match same {
            Some(place) => items[place] = item,
            None => items.push(item),
        }
    }
    Ok(Value::list(items))
}

/// The type that `type(value)` yields.
pub(super) fn kind_of<'a>(value: &Value<'a>) -> Value<'a> {
    Value::Type(match value {
        Value::Type(_) => Type::Kind(Type::Dyn.into()),
        other => other.kind(),
    })
}
