//! The types of expressions, and which fits where.
//!
//! Source: the type checker of the language's definition, with what cel-go lets pass beyond it (null for whatever is an
//! object or opaque).

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::shape::{Form, Shape};

/// Parts of one type, of which there are a handful in any that somebody means. What has more is dynamic.
const MOST_PARTS: u32 = 1_000;
/// Parts of types looked at for one rule: many times what the longest rule needs.
const MOST_STEPS: u32 = 5_000_000;

#[derive(Clone, Debug)]
pub(crate) enum Type {
    /// Of what was told of already.
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    /// An object with declared fields.
    Object(Arc<Shape>),
    /// What only functions look into, such as `net.IP`.
    Opaque(&'static str),
    Optional(Arc<Type>),
    /// The type of types.
    Kind(Arc<Type>),
    /// Not known yet.
    Param(usize),
}

impl Type {
    pub(super) fn list(of: Self) -> Self {
        Self::List(Arc::new(of))
    }

    pub(super) fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    pub(super) fn optional(of: Self) -> Self {
        Self::Optional(Arc::new(of))
    }

    /// What values of a shape are.
    pub(crate) fn of(shape: &Arc<Shape>) -> Self {
        match &shape.form {
            Form::IntOrString => Self::Dyn,
            Form::Bool => Self::Bool,
            Form::Int => Self::Int,
            Form::Double => Self::Double,
            Form::String => Self::String,
            Form::Bytes => Self::Bytes,
            Form::Duration => Self::Duration,
            Form::Date | Form::DateTime => Self::Timestamp,
            Form::List { items, .. } => Self::list(Self::of(items)),
            Form::Map(of) => Self::map(Self::String, Self::of(of)),
            Form::Object { .. } => Self::Object(shape.clone()),
        }
    }

    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// Those of which a value is as large as any other.
    pub(super) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Optional(of) => of.is_scalar(),
            _ => false,
        }
    }

    fn accepts_null(&self) -> bool {
        matches!(
            self,
            Self::Null | Self::Object(_) | Self::Opaque(_) | Self::Optional(_) | Self::Duration | Self::Timestamp
        )
    }

    fn params(&self) -> Vec<&Self> {
        match self {
            Self::List(of) | Self::Optional(of) | Self::Kind(of) => vec![&**of],
            Self::Map(of) => vec![&of.0, &of.1],
            _ => Vec::new(),
        }
    }

    /// The same but for its parameters.
    fn same_head(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(one), Self::Object(other)) => Arc::ptr_eq(one, other),
            (Self::Opaque(one), Self::Opaque(other)) => one == other,
            (Self::Param(one), Self::Param(other)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The name as `type()` values and messages have it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Error => "!error!",
            Self::Dyn => "dyn",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Object(shape) => match &shape.form {
                Form::Object { name, .. } => name,
                _ => "object",
            },
            Self::Opaque(name) => name,
            Self::Optional(_) => "optional_type",
            Self::Kind(_) => "type",
            Self::Param(_) => "dyn",
        }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        self.same_head(other) && self.params() == other.params()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params = self.params();
        let name = match self {
            Self::Null => "null",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::Param(number) => return write!(f, "_var{number}"),
            _ => self.name(),
        };
        f.write_str(name)?;
        if params.is_empty() {
            return Ok(());
        }
        let params: Vec<String> = params.iter().map(ToString::to_string).collect();
        write!(f, "({})", params.join(", "))
    }
}

/// What is known of parameters so far.
///
/// A few words can write a type that doubles with each of them (`{a: a}` within `{b: b}` …), so all that follows
/// parameters is counted.
#[derive(Default)]
pub(super) struct Bindings {
    known: HashMap<usize, Type>,
    params: usize,
    /// What the assignment that is being tried has put into `known`, and what was there.
    tried: Vec<(usize, Option<Type>)>,
    steps: Cell<u32>,
}

impl Bindings {
    pub(super) fn fresh(&mut self) -> Type {
        self.params += 1;
        Type::Param(self.params - 1)
    }

    /// Whether so much was asked that nothing answered since means anything.
    pub(super) fn is_exhausted(&self) -> bool {
        self.steps.get() >= MOST_STEPS
    }

    fn step(&self) -> bool {
        self.steps.set(self.steps.get().saturating_add(1));
        !self.is_exhausted()
    }

    /// The type with all that is known put in; what is not stays, or is dynamic.
    pub(super) fn substitute(&self, of: &Type, to_dyn: bool) -> Type {
        self.put_in(of, to_dyn, &mut { MOST_PARTS })
    }

    fn put_in(&self, of: &Type, to_dyn: bool, parts: &mut u32) -> Type {
        if *parts == 0 || !self.step() {
            return Type::Dyn;
        }
        *parts -= 1;
        match of {
            Type::Param(param) => match self.known.get(param) {
                Some(known) => self.put_in(known, to_dyn, parts),
                None if to_dyn => Type::Dyn,
                None => of.clone(),
            },
            Type::List(item) => Type::list(self.put_in(item, to_dyn, parts)),
            Type::Optional(item) => Type::optional(self.put_in(item, to_dyn, parts)),
            Type::Kind(item) => Type::Kind(Arc::new(self.put_in(item, to_dyn, parts))),
            Type::Map(of) => Type::map(self.put_in(&of.0, to_dyn, parts), self.put_in(&of.1, to_dyn, parts)),
            _ => of.clone(),
        }
    }

    /// Whether each fits its counterpart; what that means for parameters is kept only if all do.
    pub(super) fn assign(&mut self, pairs: &[(&Type, &Type)]) -> bool {
        let fits = pairs.iter().all(|(one, other)| self.fits(one, other));
        for (param, before) in std::mem::take(&mut self.tried).into_iter().rev().filter(|_| !fits) {
            match before {
                Some(before) => self.known.insert(param, before),
                None => self.known.remove(&param),
            };
        }
        fits
    }

    fn know(&mut self, param: usize, kind: Type) {
        let before = self.known.insert(param, kind);
        self.tried.push((param, before));
    }

    fn fits(&mut self, one: &Type, other: &Type) -> bool {
        if !self.step() {
            return true;
        }
        if let Type::Param(param) = other {
            let bound = self.known.contains_key(param);
            if self.bind(one, *param) {
                return true;
            }
            if bound {
                return false;
            }
        }
        if let Type::Param(param) = one {
            return self.bind(other, *param);
        }
        if one.is_dyn() || other.is_dyn() {
            return true;
        }
        match (one, other) {
            (Type::Null, _) => other.accepts_null(),
            (_, Type::Null) => one.accepts_null(),
            (Type::Kind(_), Type::Kind(_)) => true,
            _ => {
                let (left, right) = (one.params(), other.params());
                one.same_head(other) && left.iter().zip(&right).all(|(left, right)| self.fits(left, right))
            }
        }
    }

    /// Whether the parameter may be the type; if it may, it is from now on, unless it was something more general.
    fn bind(&mut self, to: &Type, param: usize) -> bool {
        if *to == Type::Param(param) {
            return true;
        }
        let own = Type::Param(param);
        match self.known.get(&param).cloned() {
            Some(known) if known == *to => true,
            Some(known) => {
                let fits = self.fits(to, &known);
                if fits {
                    let general = more_general(to, &known);
                    if !self.occurs(&own, &general) {
                        self.know(param, general);
                    }
                }
                fits
            }
            None => {
                let free = !self.occurs(&own, to);
                if free {
                    self.know(param, to.clone());
                }
                free
            }
        }
    }

    fn occurs(&self, param: &Type, within: &Type) -> bool {
        if param == within || !self.step() {
            return true;
        }
        match within {
            Type::Param(other) => self.known.get(other).is_some_and(|known| self.occurs(param, known)),
            _ => within.params().into_iter().any(|part| self.occurs(param, part)),
        }
    }
}

/// Of two types of which one fits the other, the one that says less.
pub(super) fn more_general(one: &Type, other: &Type) -> Type {
    if says_less(one, other) { one.clone() } else { other.clone() }
}

fn says_less(one: &Type, other: &Type) -> bool {
    if matches!(one, Type::Dyn | Type::Param(_)) {
        return true;
    }
    if matches!(other, Type::Dyn | Type::Param(_)) {
        return false;
    }
    matches!(one, Type::Kind(_)) && matches!(other, Type::Kind(_))
        || one.same_head(other) && one.params().iter().zip(other.params()).all(|(one, other)| says_less(one, other))
}
