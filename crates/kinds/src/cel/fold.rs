//! A macro, and the list or map that it goes through -> what comes of it.
//!
//! Source: the language's definition of macros; `ext/comprehensions.go` and `ext/lists.go` of cel-go.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::ast::{Fold, What};
use super::evaluate::{Found, Run, entry_key};
use super::room::{Failure, Room};
use super::value::{Key, Map, Value};
use super::{cost, functions};

impl<'a> Run<'a> {
    pub(super) fn fold(&mut self, fold: &'a Fold) -> Found<'a> {
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
            self.room.work_on(value.as_ref().unwrap_or(&key))?;
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
                self.room.work(made.len() as u64)?;
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

fn insert<'a>(entries: &mut BTreeMap<Key, Value<'a>>, key: &Value<'a>, value: Value<'a>) -> Result<(), Failure> {
    if entries.insert(entry_key(key)?, value).is_some() {
        return Err(Failure::Other(format!("insert failed: key {} already exists", functions::shown(key))));
    }
    Ok(())
}
