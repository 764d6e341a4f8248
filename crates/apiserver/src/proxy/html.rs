//! A page -> the same page with its links changed. Pure.
//!
//! Tags are found as a tokenizer finds them: comments, and the text of scripts and styles, are passed over. Whatever
//! cannot be made sense of stays as it is. Source: HTML, "Attributes that take URLs".

/// Attributes that are links, by tag.
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

fn links_of(tag: &str) -> &'static [&'static str] {
    let found = LINKS.iter().find(|(name, _)| tag.eq_ignore_ascii_case(name));
    found.map_or(&[], |(_, attributes)| attributes)
}

pub(super) fn rewritten(page: &[u8], rewrite: impl Fn(&str) -> String) -> Vec<u8> {
    match std::str::from_utf8(page) {
        Ok(page) => rewritten_text(page, rewrite).into_bytes(),
        // Tags and links are ASCII in whatever else pages are written: each byte is taken for a letter of its own.
        Err(_) => {
            let letters: String = page.iter().copied().map(char::from).collect();
            let bytes = |letter| u8::try_from(u32::from(letter)).unwrap_or(b'?');
            rewritten_text(&letters, rewrite).chars().map(bytes).collect()
        }
    }
}

fn rewritten_text(page: &str, rewrite: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(page.len() + 1024);
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let (text, from) = rest.split_at(at);
        out.push_str(text);
        if from.starts_with("<!--") {
            let end = from.find("-->").map_or(from.len(), |end| end + 3);
            out.push_str(&from[..end]);
            rest = &from[end..];
            continue;
        }
        let name: &str = from[1..].split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap_or_default();
        if name.is_empty() {
            out.push('<');
            rest = &from[1..];
            continue;
        }
        out.push_str(&from[..=name.len()]);
        rest = attributes(&from[1 + name.len()..], links_of(name), &rewrite, &mut out);
        if ["script", "style", "textarea", "title"].iter().any(|raw| name.eq_ignore_ascii_case(raw)) {
            // No tag but its own end means anything in it.
            let end = find_end(rest, name);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

fn find_end(text: &str, name: &str) -> usize {
    let is_end = |at: &usize| {
        let after = text.get(at + 2..at + 2 + name.len());
        after.is_some_and(|after| after.eq_ignore_ascii_case(name))
    };
    text.match_indices("</").map(|(at, _)| at).find(is_end).unwrap_or(text.len())
}

/// Copies what is left of a tag, and gives what follows it.
fn attributes<'a>(mut rest: &'a str, links: &[&str], rewrite: impl Fn(&str) -> String, out: &mut String) -> &'a str {
    loop {
        let at = rest.find(|letter: char| !letter.is_ascii_whitespace() && letter != '/').unwrap_or(rest.len());
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('>') {
            out.push('>');
            return after;
        }
        if rest.is_empty() {
            return rest;
        }
        let ends = |letter: char| letter.is_ascii_whitespace() || matches!(letter, '=' | '>' | '/');
        // An attribute's name has a letter at least, whatever that is.
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let end = rest[first..].find(ends).map_or(rest.len(), |end| first + end);
        let (name, after) = rest.split_at(end);
        out.push_str(name);
        rest = after;
        let value = after.trim_ascii_start();
        let Some(value) = value.strip_prefix('=').map(str::trim_ascii_start) else { continue };
        out.push_str(&after[..after.len() - value.len()]);
        let (quote, value) = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => (Some(quote), &value[1..]),
            _ => (None, value),
        };
        let end = match quote {
            Some(quote) => value.find(quote),
            None => value.find(|letter: char| letter.is_ascii_whitespace() || letter == '>'),
        };
        let (link, after) = value.split_at(end.unwrap_or(value.len()));
        out.extend(quote);
        // An empty link is the page itself.
        match !link.is_empty() && links.iter().any(|link| name.eq_ignore_ascii_case(link)) {
            true => out.push_str(&escaped(&rewrite(&link.replace("&amp;", "&")))),
            false => out.push_str(link),
        }
        rest = after;
        if let Some(quote) = quote.filter(|quote| rest.starts_with(*quote)) {
            out.push(quote);
            rest = &rest[1..];
        }
    }
}

fn escaped(link: &str) -> String {
    link.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(page: &str, expected: &str) {
        let rewritten = rewritten(page.as_bytes(), |link| format!("+{link}"));
        assert_eq!(String::from_utf8(rewritten).unwrap(), expected, "{page}");
    }

    #[test]
    fn links_in_tags_are_rewritten_and_nothing_else() {
        check("<a href=\"/x?a=1&amp;b=2\">/x</a>", "<a href=\"+/x?a=1&amp;b=2\">/x</a>");
        check("<IMG alt='/a' SRC = '/b'/>", "<IMG alt='/a' SRC = '+/b'/>");
        check("<a class=b href=/x>", "<a class=b href=+/x>");
        check("<p href=\"/x\">a < b > c</p>", "<p href=\"/x\">a < b > c</p>");
        check("<!-- <a href=\"/x\"> --><a href='/y'>", "<!-- <a href=\"/x\"> --><a href='+/y'>");
        check(
            "<script src=\"/s\">'<a href=\"/x\">'</SCRIPT><link href=\"/c\">",
            "<script src=\"+/s\">'<a href=\"/x\">'</SCRIPT><link href=\"+/c\">",
        );
        check("<a download href=\"é\">", "<a download href=\"+é\">");
    }

    #[test]
    fn what_is_no_page_stays_as_it_is() {
        for text in ["<a href=\"\">", "<", "<a", "<a href", "<a href=", "<!--", "</", "<a =>", "<script>", "<é"] {
            check(text, text);
        }
        check("<a href=\"/x", "<a href=\"+/x");
        assert_eq!(rewritten(b"<a href=\"\xff\">\xe9", |link| format!("+{link}")), b"<a href=\"+\xff\">\xe9");
    }
}
