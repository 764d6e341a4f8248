//! An explanation -> the text a person reads.

use std::fmt::Write;

use super::Explanation;
use super::addresses::{End, Way};

pub(super) fn render(explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.heading);
    // Writing to a string cannot fail.
    for name in &explanation.names {
        let _ = writeln!(text, "  {name}");
    }
    let mut told: Option<&[Way]> = None;
    for address in &explanation.addresses {
        let _ = writeln!(text, "\n  {}", address.what);
        for note in &address.notes {
            let _ = writeln!(text, "    {note}");
        }
        if told == Some(&address.ways) {
            let _ = writeln!(text, "    as above");
        } else {
            address.ways.iter().for_each(|way| write_way(&mut text, way));
        }
        told = Some(&address.ways);
    }
    if !explanation.reasons.is_empty() {
        let title = if explanation.broken() { "It does not work:" } else { "It works; but:" };
        let _ = writeln!(text, "\n  {title}");
    }
    for reason in &explanation.reasons {
        let _ = writeln!(text, "  - {}", reason.what);
        if let Some(remedy) = &reason.remedy {
            let _ = writeln!(text, "    → {remedy}");
        }
    }
    text
}

fn write_way(text: &mut String, way: &Way) {
    let on = if way.nodes.is_empty() { String::new() } else { format!("on {}: ", way.nodes.join(", ")) };
    let _ = match &way.end {
        End::Refused => writeln!(text, "    {on}refused: there is no endpoint"),
        End::Unanswered => writeln!(text, "    {on}unanswered: the policy is Local and the endpoints are elsewhere"),
        End::Backends(shares) => {
            if !on.is_empty() {
                let _ = writeln!(text, "    {}", on.trim_end());
            }
            let width = shares.iter().map(|share| share.address.len()).max().unwrap_or(0);
            shares.iter().try_for_each(|share| {
                let (whole, tenth) = (share.permille / 10, share.permille % 10);
                writeln!(text, "    {whole:>3}.{tenth} %  {:<width$}  {}", share.address, share.who)
            })
        }
    };
}
