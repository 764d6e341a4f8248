//! What was found -> the text a person reads, and JSON.

use std::fmt::Write;

use portolan_dataplane::trace::{End, Outcome};
use serde_json::{Value, json};

use super::Told;

pub(super) fn text(told: &Told) -> String {
    let mut text = format!("{}\n", told.heading);
    // Writing to a string cannot fail.
    for note in &told.before {
        let _ = writeln!(text, "  {note}");
    }
    let _ = write!(text, "\n{}\n", told.trace);
    let _ = writeln!(text, "  {}", ending(told));
    let is_backend = |end: &&End| matches!(end.outcome, Outcome::To { backend, .. } if backend.port() != 0);
    let backends: Vec<_> = told.trace.ends.iter().filter(is_backend).collect();
    let width = backends.iter().map(|end| address(end).len()).max().unwrap_or_default();
    for end in backends {
        let Outcome::To { backend, masqueraded } = &end.outcome else { continue };
        let permille = u64::from(end.ways) * 1000 / u64::from(end.of.max(1));
        let mut about: Vec<String> = told.names.get(&backend.ip()).cloned().into_iter().collect();
        about.push(match masqueraded {
            None => format!("sees {}", told.source),
            Some(why) if why.is_empty() => "sees the node's address".to_owned(),
            Some(why) => format!("sees the node's address: {why}"),
        });
        let _ = writeln!(
            text,
            "    {:>3}.{} %  {:<width$}  {}",
            permille / 10,
            permille % 10,
            backend.to_string(),
            about.join("; ")
        );
    }
    for unknown in &told.trace.unknown {
        let _ = writeln!(text, "\n  This may be wrong: the table has what this program cannot carry out: {unknown}");
    }
    for note in &told.after {
        let _ = writeln!(text, "\n  {note}");
    }
    text
}

fn address(end: &End) -> String {
    if let Outcome::To { backend, .. } = &end.outcome { backend.to_string() } else { String::new() }
}

fn ending(told: &Told) -> String {
    let because = || {
        let last = told.trace.steps.iter().rev().map(|step| step.comment.as_str()).find(|comment| !comment.is_empty());
        last.map(|comment| format!(": {comment}")).unwrap_or_default()
    };
    match told.trace.ends.as_slice() {
        [] => "Nothing is known of it.".to_owned(),
        [End { outcome: Outcome::Refused, .. }] => format!("It is refused, and the client knows at once{}.", because()),
        [End { outcome: Outcome::Dropped, .. }] => format!("It is dropped, and the client hears nothing{}.", because()),
        [End { outcome: Outcome::Passed, .. }] => {
            "It goes where routing sends it: no rule of Portolan's concerns it.".to_owned()
        }
        [End { outcome: Outcome::To { backend, .. }, .. }] if backend.port() == 0 => {
            "The node answers it itself.".to_owned()
        }
        [End { outcome: Outcome::To { .. }, .. }] => "It goes to".to_owned(),
        ends if ends.iter().all(|end| matches!(end.outcome, Outcome::To { .. })) => {
            format!("It goes to one of these {}", ends.len())
        }
        _ => "It is forwarded for some connections and not for others: a slot is missing; the next audit mends it"
            .to_owned(),
    }
}

pub(super) fn json(told: &Told) -> Value {
    let steps = told.trace.steps.iter().map(|step| {
        json!({
            "hook": step.hook, "chain": step.chain, "comment": step.comment, "elements": step.elements,
            "effect": step.effect,
        })
    });
    let ends = told.trace.ends.iter().map(|end| {
        let mut value = json!({"share": f64::from(end.ways) / f64::from(end.of.max(1)), "element": end.element});
        match &end.outcome {
            Outcome::To { backend, masqueraded } => {
                value["outcome"] = json!("forwarded");
                value["backend"] = json!(backend.to_string());
                value["who"] = json!(told.names.get(&backend.ip()));
                value["sourceKept"] = json!(masqueraded.is_none());
                value["because"] = json!(masqueraded);
            }
            Outcome::Refused => value["outcome"] = json!("refused"),
            Outcome::Dropped => value["outcome"] = json!("dropped"),
            Outcome::Passed => value["outcome"] = json!("passed"),
        }
        value
    });
    json!({
        "node": told.node, "source": told.source, "destination": told.destination.to_string(),
        "protocol": told.transport.name(), "interface": told.interface, "service": told.service,
        "steps": steps.collect::<Vec<_>>(), "ends": ends.collect::<Vec<_>>(), "unknown": told.trace.unknown,
        "agreesWithApi": told.agrees, "notes": told.before.iter().chain(&told.after).collect::<Vec<_>>(),
    })
}
