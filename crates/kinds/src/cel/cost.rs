//! What a rule costs: at worst, by the sizes that the schema allows, and in one evaluation, by the sizes that there
//! are.
//!
//! A unit is about 50 ns on a server of 2021. The figures decide which definitions may be written, so they are
//! upstream's. Deliberately not here: lower bounds, of which nothing depends.
//! Source: `checker/cost.go` and `interpreter/runtimecost.go` of cel-go, `library/cost.go` of
//! `k8s.io/apiserver/pkg/cel`.

use std::collections::HashMap;

use super::ast::{Expr, Fold, Literal, Node, What};
use super::check::Types;
use super::library;
use super::shape::{Form, Shape};
use super::types::Type;
use super::value::{List, Value};

/// What making a list costs, whatever is in it.
pub(super) const LIST: u64 = 10;
pub(super) const MAP: u64 = 30;
/// What a macro pays for an item that it keeps: the list of the item alone, and adding it.
pub(super) const APPEND: u64 = 12;
/// What comparing versions, quantities and the like is worth.
const TRAVERSAL: f64 = 0.1;
const PATTERN: f64 = 0.25;
/// The longest regular expression of a format that has a name.
const FORMAT_PATTERN: f64 = 128.0;
/// Nothing is known of the size.
const UNKNOWN: u64 = u64::MAX;

/// A size times a factor, rounded up.
fn times(size: u64, factor: f64) -> u64 {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, which saturates"
    )]
    let product = (size as f64 * factor).ceil() as u64;
    product
}

fn matching(text: u64, pattern: u64) -> u64 {
    times(text.saturating_add(1), TRAVERSAL).saturating_mul(times(pattern, PATTERN))
}

/// What every pass of a macro costs beside its body.
pub(super) fn of_step(what: What) -> u64 {
    match what {
        What::All => 3,
        What::Exists => 4,
        What::ExistsOne => 2,
        What::Filter => 1,
        What::Map | What::Entries => 2,
        What::List | What::Optional | What::FlatOptional | What::SortBy => 0,
    }
}

/// What a macro costs beside its passes.
pub(super) fn of_fold(what: What) -> u64 {
    match what {
        What::All | What::Exists => 1,
        What::ExistsOne => 2,
        What::List | What::Filter | What::SortBy => LIST + 1,
        What::Map | What::Entries => MAP + 1,
        What::Optional | What::FlatOptional => 3,
    }
}

/// What a call costs before it is done.
pub(super) fn of_call(function: &str, args: &[Value<'_>]) -> u64 {
    let size = |index: usize| args.get(index).map_or(1, Value::size);
    match function {
        "startsWith" | "endsWith" | "bytes" | "strings.quote" | "format" | "url" | "lowerAscii" | "upperAscii"
        | "substring" | "trim" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
            times(size(0), TRAVERSAL)
        }
        "ip" if matches!(args, [Value::Cidr(_)]) => 1,
        "ip" => times(size(0), TRAVERSAL),
        "string" if matches!(args, [Value::Bytes(_)]) => times(size(0), TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => times(size(0), 2.0 * TRAVERSAL),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(1, traversal),
        "@in" if matches!(args.get(1), Some(Value::List(_))) => size(1),
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => times(size(0).min(size(1)), TRAVERSAL),
        "_+_" if matches!(args.first(), Some(Value::String(_) | Value::Bytes(_))) => {
            times(size(0) + size(1), TRAVERSAL)
        }
        "matches" | "find" | "findAll" => matching(size(0), size(1)),
        "contains" => times(size(0), TRAVERSAL).saturating_mul(times(size(1), TRAVERSAL)),
        "validate" => times(size(1) + 1, TRAVERSAL).saturating_mul(times(60, PATTERN)),
        "containsIP" | "containsCIDR" => times(2 * size(0), TRAVERSAL) + times(size(1), TRAVERSAL),
        "sets.contains" | "sets.intersects" => 1 + size(0).saturating_mul(size(1)),
        "sets.equivalent" => 1 + size(0).saturating_mul(size(1)).saturating_mul(2),
        "distinct" | "sort" => 1 + LIST + size(0).saturating_mul(size(0)),
        "slice" | "flatten" | "reverse" => 1 + LIST + size(0),
        // Paid for by what comes out.
        "join" => 0,
        _ => 1,
    }
}

/// What a call costs for its result.
pub(super) fn of_result(function: &str, result: &Value<'_>) -> u64 {
    match function {
        "join" => times(result.size(), 2.0 * TRAVERSAL),
        "lists.range" => LIST + result.size(),
        _ => 0,
    }
}

/// What it costs to look at all of a list's items.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => times(text.len() as u64, TRAVERSAL),
        Value::Bytes(bytes) => times(bytes.len() as u64, TRAVERSAL),
        Value::List(List::Held { items, .. }) => {
            items.iter().map(|item| item.as_str().map_or(1, |text| times(text.len() as u64, TRAVERSAL))).sum()
        }
        Value::List(List::Made { items, .. }) => items.iter().map(traversal).sum(),
        _ => 1,
    }
}

/// What a rule may cost at most.
pub(super) fn most(root: &Expr, types: &Types, own: &Shape) -> u64 {
    let mut estimate = Estimate { types, own, locals: Vec::new(), sizes: HashMap::new(), items: HashMap::new() };
    estimate.cost(root)
}

/// Where in the object a value is from.
#[derive(Clone, Copy)]
enum Place<'a> {
    At(&'a Shape),
    /// A key of a map, of which the schema says nothing.
    Key,
}

/// A variable of a macro.
struct Local<'a> {
    name: &'a str,
    place: Option<Place<'a>>,
}

struct Estimate<'a> {
    types: &'a Types,
    own: &'a Shape,
    locals: Vec<Local<'a>>,
    /// Of results of calls and macros.
    sizes: HashMap<usize, u64>,
    /// The largest key and the largest value in what was made.
    items: HashMap<usize, (u64, u64)>,
}

impl<'a> Estimate<'a> {
    fn place(&self, expr: &Expr) -> Option<Place<'a>> {
        match &expr.node {
            Node::Name(name) => match self.locals.iter().rfind(|local| local.name == name) {
                Some(local) => local.place,
                // Names of types too, whose size counts for nothing then.
                None => Some(Place::At(self.own)),
            },
            Node::Select { operand, field, .. } => match self.place(operand)? {
                Place::At(shape) => shape.field(field).map(|field| Place::At(&field.shape)),
                Place::Key => None,
            },
            Node::Call { function, args, .. } if function == "_[_]" => self.item(args.first()?),
            _ => None,
        }
    }

    /// The place of what is in a list or a map.
    fn item(&self, whole: &Expr) -> Option<Place<'a>> {
        match self.place(whole)? {
            Place::At(shape) => match &shape.form {
                Form::List { items: of, .. } | Form::Map(of) => Some(Place::At(of)),
                _ => None,
            },
            Place::Key => None,
        }
    }

    fn known_size(&self, expr: &Expr) -> Option<u64> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        match &expr.node {
            Node::Literal(literal) => return Some(literal_size(literal)),
            Node::List(items) => return Some(items.len() as u64),
            Node::Map(entries) => return Some(entries.len() as u64),
            _ => {}
        }
        match self.place(expr) {
            Some(Place::At(shape)) => return Some(shape.most),
            Some(Place::Key) => return Some(0),
            None => {}
        }
        self.types.of(expr).is_scalar().then_some(1)
    }

    fn size(&self, expr: &Expr) -> u64 {
        self.known_size(expr).unwrap_or(UNKNOWN)
    }

    fn cost(&mut self, expr: &'a Expr) -> u64 {
        match &expr.node {
            Node::Literal(_) => 0,
            Node::Name(_) => 1,
            Node::Select { operand, .. } => {
                let own = u64::from(matches!(self.types.of(operand), Type::Map(_) | Type::Object(_)));
                self.cost(operand).saturating_add(own)
            }
            Node::Has { operand, .. } => self.cost(operand),
            Node::Message(_) => 0,
            Node::List(items) => {
                let sum = items.iter().fold(LIST, |sum, (item, _)| sum.saturating_add(self.cost(item)));
                let largest = items.iter().map(|(item, _)| self.size(item)).max().unwrap_or(0);
                self.items.insert(expr.id, (1, largest));
                sum
            }
            Node::Map(entries) => {
                let mut sum = MAP;
                for (key, value, _) in entries {
                    sum = sum.saturating_add(self.cost(key)).saturating_add(self.cost(value));
                }
                let keys = entries.iter().map(|(key, ..)| self.size(key)).max().unwrap_or(0);
                let values = entries.iter().map(|(_, value, _)| self.size(value)).max().unwrap_or(0);
                self.items.insert(expr.id, (keys, values));
                sum
            }
            Node::Call { function, target, args } => {
                let mut costs: Vec<u64> = args.iter().map(|arg| self.cost(arg)).collect();
                let target_cost = target.as_ref().map_or(0, |target| self.cost(target));
                if function == "_?_:_" && costs.len() == 3 {
                    costs[1] = costs[1].max(costs[2]);
                    costs.truncate(2);
                }
                let sum = costs.into_iter().fold(target_cost, u64::saturating_add);
                let (own, size) = self.call(expr, function, target.as_deref(), args);
                if let Some(size) = size.or_else(|| self.known_size(expr)) {
                    self.sizes.insert(expr.id, size);
                }
                sum.saturating_add(own)
            }
            Node::Fold(fold) => self.fold(expr, fold),
        }
    }

    /// What a call costs by itself, and how large what it yields may be.
    fn call(&mut self, expr: &Expr, function: &str, target: Option<&'a Expr>, args: &'a [Expr]) -> (u64, Option<u64>) {
        let all: Vec<&'a Expr> = target.into_iter().chain(args).collect();
        let size = |index: usize| all.get(index).map_or(UNKNOWN, |arg| self.size(arg));
        let kind = |index: usize| all.get(index).map_or(Type::Dyn, |arg| self.types.of(arg));
        let traversed = |index: usize| times(size(index), TRAVERSAL);
        match function {
            "_&&_" | "_||_" => (0, None),
            "_?_:_" => {
                if let (Some(yes), Some(no)) = (self.items.get(&args[1].id), self.items.get(&args[2].id)) {
                    let both = (yes.0.max(no.0), yes.1.max(no.1));
                    self.items.insert(expr.id, both);
                }
                (0, Some(self.size(&args[1]).max(self.size(&args[2]))))
            }
            "dyn" => (1, self.known_size(&args[0])),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => match kind(0) {
                Type::List(of) => {
                    let item = match (&*of, all.first().and_then(|list| self.item(list))) {
                        (Type::String | Type::Bytes, Some(Place::At(shape))) => 1 + times(shape.most, TRAVERSAL),
                        (Type::String | Type::Bytes, _) => times(UNKNOWN, TRAVERSAL),
                        _ => 1,
                    };
                    (size(0).saturating_mul(item), None)
                }
                _ => (traversed(0), None),
            },
            "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" => (traversed(0), Some(size(0))),
            "replace" if all.len() >= 3 => {
                (times(size(0), 2.0 * TRAVERSAL), Some(self.replaced(all[0], all[1], all[2])))
            }
            "split" => {
                let limit = match all.get(2).map(|limit| &limit.node) {
                    Some(Node::Literal(Literal::Int(limit))) => u64::try_from(*limit).unwrap_or(UNKNOWN),
                    _ => size(0),
                };
                (times(size(0), 2.0 * TRAVERSAL), Some(limit))
            }
            "join" => {
                let item = match all.first().and_then(|list| self.item(list)) {
                    Some(Place::At(shape)) => shape.most,
                    _ => UNKNOWN,
                };
                let between = if all.len() > 1 { size(1).saturating_mul(size(0).saturating_sub(1)) } else { 0 };
                let sum = size(0).saturating_mul(item).saturating_add(between);
                (times(sum, TRAVERSAL), Some(sum))
            }
            "find" | "findAll" => (matching(size(0), size(1)), Some(size(0))),
            "matches" => (matching(size(0), size(1)), None),
            "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => (traversed(0), None),
            "ip" if matches!(kind(0), Type::Opaque(library::CIDR)) => (1, None),
            "ip" => (traversed(0), None),
            "ip.isCanonical" => (times(size(0), 2.0 * TRAVERSAL), None),
            "containsIP" | "containsCIDR" => {
                let other = if matches!(kind(1), Type::String) { traversed(1) } else { 0 };
                let masked = if function == "containsCIDR" { times(16, TRAVERSAL) + 1 } else { 0 };
                (times(32, TRAVERSAL).saturating_add(masked).saturating_add(other), None)
            }
            "validate" => (times(traversed(1), FORMAT_PATTERN * PATTERN), None),
            "format" => (traversed(0), None),
            "bytes" if matches!(kind(0), Type::String | Type::Dyn) => (traversed(0), Some(size(0).saturating_mul(4))),
            "string" if matches!(kind(0), Type::Bytes | Type::Dyn) => (traversed(0), Some(size(0))),
            "startsWith" | "endsWith" => (traversed(1), None),
            "contains" => (traversed(0).saturating_mul(traversed(1)), None),
            "@in" if matches!(kind(1), Type::List(_)) => (size(1), None),
            "_+_" => self.sum(expr, args, &kind(0)),
            "_==_" if matches!(kind(0), Type::Opaque(_)) && kind(0) == kind(1) => (1, None),
            "_==_" | "_!=_" => (times(size(0).min(size(1)), TRAVERSAL), None),
            "_<_" | "_<=_" | "_>_" | "_>=_" => match kind(0) {
                Type::String | Type::Bytes | Type::Dyn => (times(size(0).min(size(1)), TRAVERSAL).max(1), None),
                _ => (1, None),
            },
            "_[_]" => (1, self.items.get(&args[0].id).map(|(_, value)| *value)),
            "sets.contains" | "sets.intersects" => (size(0).saturating_mul(size(1)).saturating_add(1), None),
            "sets.equivalent" => (size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1), None),
            "distinct" | "sort" => (size(0).saturating_mul(size(0)).saturating_add(1 + LIST), Some(size(0))),
            "slice" | "flatten" | "reverse" => (size(0).saturating_add(1 + LIST), Some(size(0))),
            "lists.range" => (size(0).saturating_add(1 + LIST), None),
            _ => (1, None),
        }
    }

    fn sum(&mut self, expr: &Expr, args: &[Expr], kind: &Type) -> (u64, Option<u64>) {
        let [left, right] = args else { return (1, None) };
        let size = self.size(left).saturating_add(self.size(right));
        match kind {
            Type::String | Type::Bytes => (times(size, TRAVERSAL), Some(size)),
            Type::List(_) => {
                if let (Some(one), Some(other)) = (self.items.get(&left.id), self.items.get(&right.id)) {
                    let both = (one.0.max(other.0), one.1.max(other.1));
                    self.items.insert(expr.id, both);
                }
                (1, Some(size))
            }
            Type::Dyn => (times(size, TRAVERSAL), Some(size)),
            _ => (1, None),
        }
    }

    /// How long a text may be after replacements.
    fn replaced(&self, whole: &Expr, old: &Expr, new: &Expr) -> u64 {
        let (whole, new) = (self.size(whole), self.size(new));
        // Of a literal it is known how short it is.
        let shortest = match &old.node {
            Node::Literal(literal) => literal_size(literal),
            _ => 0,
        };
        match shortest {
            0 => whole.saturating_add(1).saturating_mul(new).saturating_add(whole),
            _ if new <= shortest => whole,
            _ => whole.div_ceil(shortest).saturating_mul(new),
        }
    }

    fn fold(&mut self, expr: &Expr, fold: &'a Fold) -> u64 {
        let range = self.cost(&fold.range);
        let count = match fold.what {
            What::Optional | What::FlatOptional => 1,
            _ => self.size(&fold.range),
        };
        let is_list = matches!(self.types.of(&fold.range), Type::List(_));
        let (key, item) = match (fold.what, self.place(&fold.range)) {
            (What::Optional | What::FlatOptional, _) => (None, None),
            // What is iterated over has no place in the schema. Upstream takes its items for the object itself then.
            (_, None) => (Some(Place::At(self.own)), Some(Place::At(self.own))),
            (_, Some(_)) => (Some(Place::Key), self.item(&fold.range)),
        };
        let depth = self.locals.len();
        let first = if fold.value.is_none() && is_list { item } else { key };
        self.locals.push(Local { name: &fold.key, place: first });
        if let Some(name) = &fold.value {
            self.locals.push(Local { name, place: item });
        }
        let filter = fold.filter.as_ref().map_or(0, |filter| self.cost(filter));
        let body = self.cost(&fold.body);
        let kept = match fold.what {
            What::Filter | What::List => APPEND,
            _ => 0,
        };
        let largest = self.size(&fold.body);
        self.locals.truncate(depth);
        let step = of_step(fold.what).saturating_add(filter).saturating_add(body).saturating_add(kept);
        match fold.what {
            What::All | What::Exists | What::ExistsOne => _ = self.sizes.insert(expr.id, 1),
            What::List => {
                self.items.insert(expr.id, (1, largest));
                self.sizes.insert(expr.id, count);
            }
            _ => _ = self.sizes.insert(expr.id, count),
        }
        count.saturating_mul(step).saturating_add(range).saturating_add(of_fold(fold.what))
    }
}

fn literal_size(literal: &Literal) -> u64 {
    match literal {
        Literal::String(text) => text.chars().count() as u64,
        Literal::Bytes(bytes) => bytes.len() as u64,
        _ => 1,
    }
}
