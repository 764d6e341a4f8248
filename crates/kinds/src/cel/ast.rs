//! The tree of a rule. Macros stand in it as what they mean (`Fold`), not as the loops that the language defines them
//! by.

/// A part of a rule.
#[derive(Debug)]
pub(super) struct Expr {
    /// Distinct within a rule, from 0.
    pub(super) id: usize,
    /// Characters into the text.
    pub(super) at: usize,
    /// How many levels stand below it.
    pub(super) depth: usize,
    pub(super) node: Node,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

#[derive(Debug)]
pub(super) enum Node {
    Literal(Literal),
    Name(String),
    /// `operand.field`, or `operand.?field`.
    Select {
        operand: Box<Expr>,
        field: String,
        optional: bool,
    },
    /// `has(operand.field)`
    Has {
        operand: Box<Expr>,
        field: String,
    },
    /// Operators are functions with names as the language defines them, such as `_+_`.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Items, and whether each is left out if it is an empty optional.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// A message of this type, of which there are none.
    Message(String),
    Fold(Box<Fold>),
}

/// A macro that goes through a list or a map.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) what: What,
    pub(super) range: Expr,
    pub(super) key: String,
    /// The second variable, if there are two.
    pub(super) value: Option<String>,
    /// Which items count; only where a list or a map is made.
    pub(super) filter: Option<Expr>,
    pub(super) body: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    All,
    Exists,
    ExistsOne,
    /// `map` and `transformList`
    List,
    /// The items that the body is true of.
    Filter,
    /// `transformMap`
    Map,
    /// `transformMapEntry`
    Entries,
    /// `optMap`
    Optional,
    /// `optFlatMap`
    FlatOptional,
    SortBy,
}

impl Expr {
    /// What it is made of, one level down.
    pub(super) fn parts<'a>(&'a self, visit: &mut impl FnMut(&'a Self)) {
        match &self.node {
            Node::Literal(_) | Node::Name(_) | Node::Message(_) => {}
            Node::Select { operand, .. } | Node::Has { operand, .. } => visit(operand),
            Node::Call { target, args, .. } => target.as_deref().into_iter().chain(args).for_each(visit),
            Node::List(items) => items.iter().for_each(|(item, _)| visit(item)),
            Node::Map(entries) => entries.iter().for_each(|(key, value, _)| {
                visit(key);
                visit(value);
            }),
            Node::Fold(fold) => {
                visit(&fold.range);
                fold.filter.as_ref().into_iter().for_each(&mut *visit);
                visit(&fold.body);
            }
        }
    }

    /// Itself and all that is in it.
    pub(super) fn each<'a>(&'a self, visit: &mut impl FnMut(&'a Self)) {
        visit(self);
        let mut parts = Vec::new();
        self.parts(&mut |part| parts.push(part));
        for part in parts {
            part.each(visit);
        }
    }

    /// `a.b.c` as one name, if it is nothing else.
    pub(super) fn qualified(&self) -> Option<String> {
        match &self.node {
            Node::Name(name) => Some(name.clone()),
            Node::Select { operand, field, optional: false } => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }
}
