use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn shape(form: Form) -> Arc<Shape> {
    let most = match form {
        Form::String | Form::List { .. } | Form::Map(_) => 100,
        _ => 0,
    };
    Arc::new(Shape { form, nullable: false, most, least_bytes: 1 })
}

fn fields(name: &str, fields: Vec<(&str, Arc<Shape>)>) -> Arc<Shape> {
    let fields: BTreeMap<String, Field> = fields
        .into_iter()
        .map(|(name, shape)| (escape(name).unwrap(), Field { name: name.to_owned(), shape }))
        .collect();
    shape(Form::Object { name: name.to_owned(), fields })
}

fn list(items: Arc<Shape>, by: ListBy) -> Arc<Shape> {
    shape(Form::List { items, by })
}

fn own() -> Arc<Shape> {
    let port = fields("selfType.ports.@elem", vec![("name", shape(Form::String)), ("port", shape(Form::Int))]);
    fields(
        "selfType",
        vec![
            ("name", shape(Form::String)),
            ("replicas", shape(Form::Int)),
            ("ratio", shape(Form::Double)),
            ("on", shape(Form::Bool)),
            ("when", shape(Form::DateTime)),
            ("wait", shape(Form::Duration)),
            ("either", shape(Form::IntOrString)),
            ("namespace", shape(Form::String)),
            ("a-b.c/d__e", shape(Form::Int)),
            ("tags", list(shape(Form::String), ListBy::Value)),
            ("ports", list(port.clone(), ListBy::Keys(vec!["name".into()]))),
            ("labels", shape(Form::Map(shape(Form::String)))),
            ("port", port),
        ],
    )
}

fn object() -> Json {
    json!({
        "name": "web-1", "replicas": 3, "ratio": 0.5, "on": true, "when": "2026-01-02T03:04:05Z", "wait": "1h30m",
        "either": "50%", "namespace": "ns", "a-b.c/d__e": 7, "tags": ["b", "a"],
        "ports": [{"name": "x", "port": 1}, {"name": "y", "port": 2}], "labels": {"k": "v", "a/b": "c"},
        "port": {"name": "x"}
    })
}

fn evaluate(rule: &str) -> String {
    let (own, object) = (own(), object());
    let old = json!({"name": "web-0", "replicas": 2, "tags": ["a", "b"], "ports": [{"name": "y", "port": 2}, {"name": "x", "port": 1}]});
    let program = match Program::compile(rule, &own, false) {
        Ok(program) => program,
        Err(Refused::Mistakes(why) | Refused::Constant(why)) => return format!("refused: {why}"),
    };
    let variables = Variables { own: &object, old: Some(&old), old_is_optional: false, shape: &own };
    match program.evaluate(variables, MOST_WORK).0 {
        Ok(Value::Bool(value)) => value.to_string(),
        Ok(value) => functions::shown(&value),
        Err(failure) => format!("failed: {failure}"),
    }
}

#[test]
fn rules_hold() {
    for rule in [
        "self.replicas == 3 && self.replicas > oldSelf.replicas",
        "self.replicas + 2 * 3 == 9 && -self.replicas == -3 && 7 / 2 == 3 && 7 % 4 == 3 && --1 == 1",
        "self.ratio < 1 && 1.5e1 == 15.0 && 0x1F == 31 && 2u + 1u == 3u",
        "self.name.startsWith('web') && self.name.matches('^[a-z]+-[0-9]$') && !self.name.contains('x')",
        "self.name.substring(0, 3) == 'web' && self.name.indexOf('-') == 3 && self.name.charAt(4) == '1'",
        "'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b' && ' x '.trim() == 'x'",
        "'aXb'.lowerAscii() == 'axb' && 'aab'.replace('a', 'c') == 'ccb' && 'aab'.replace('a', 'c', 1) == 'cab'",
        "'%s has %d of %.2f'.format([self.name, self.replicas, self.ratio]) == 'web-1 has 3 of 0.50'",
        "'%s'.format([[1, 'a', {'k': 2.0}]]) == '[1, \"a\", {\"k\":2.000000}]' && '%x %o %b'.format([255, 8, 5]) == 'ff 10 101'",
        "self.a__dash__b__dot__c__slash__d__underscores__e == 7 && self.__namespace__ == 'ns'",
        "type(self.either) == string ? self.either.endsWith('%') : self.either > 0",
        "has(self.port.name) && !has(self.port.port) && has(self.labels.k) && 'k' in self.labels && !('z' in self.labels)",
        "self.labels['a/b'] == 'c' && self.labels.all(k, self.labels[k] != '') && size(self.labels) == 2",
        "self.tags == oldSelf.tags && self.ports == oldSelf.ports && self.tags + ['a'] == ['b', 'a']",
        "self.ports.all(p, p.port > 0) && self.ports.exists(p, p.port == 2) && self.ports.exists_one(p, p.name == 'x')",
        "self.ports.map(p, p.port) == [1, 2] && self.ports.filter(p, p.port > 1).size() == 1 && self.ports.map(p, p.port > 1, p.name) == ['y']",
        "self.ports.all(i, p, p.port == i + 1) && self.labels.exists(k, v, v == 'v') && [1, 2].transformList(i, v, v * i) == [0, 2]",
        "{'a': 1}.transformMap(k, v, v + 1) == {'a': 2} && {'a': 'b'}.transformMapEntry(k, v, {v: k}) == {'b': 'a'}",
        "[3, 1, 2].isSorted() == false && [3, 1, 2].max() == 3 && [1.5, 2.5].sum() == 4.0 && [1, 2, 1].lastIndexOf(1) == 2",
        "[3, 1, 2].sort() == [1, 2, 3] && [1, 1].distinct() == [1] && [[1], [2]].flatten() == [1, 2] && [1, 2, 3].slice(1, 2) == [2]",
        "self.ports.sortBy(p, -p.port).map(p, p.name) == ['y', 'x'] && lists.range(3) == [0, 1, 2] && [1].first().value() == 1",
        "sets.contains([1, 2], [1]) && sets.equivalent([1, 2], [2, 1]) && !sets.intersects([1], [2])",
        "self.when < timestamp('2026-02-01T00:00:00Z') && self.when.getFullYear() == 2026 && self.when.getHours('+01:00') == 4",
        "self.wait == duration('90m') && self.wait.getMinutes() == 90 && self.when + self.wait > self.when",
        "isURL('https://a.b:80/c?d=e') && url('https://a.b:80/c?d=e').getPort() == '80' && url('https://a.b/c?d=e&d=f').getQuery() == {'d': ['e', 'f']}",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('1.2.3') && ip.isCanonical('::1') && cidr('10.0.0.0/8').containsIP('10.1.2.3')",
        "cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16')) && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').prefixLength() == 8",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1k').add(1).asInteger() == 1001 && isQuantity('5m') && sign(quantity('-1')) == -1",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0-rc.1') && semver('v1', true).major() == 1 && !isSemver('v1')",
        "!format.dns1123Label().validate('a-b').hasValue() && format.named('dns1123Label').value().validate('A').hasValue()",
        "self.?port.?name == optional.of('x') && self.?port.?port.orValue(9) == 9 && self.ports[?5].hasValue() == false",
        "self.?name.optMap(n, n + '!').value() == 'web-1!' && [?optional.none(), 1] == [1] && optional.ofNonZeroValue('') == optional.none()",
        "'abc123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'a1b2'.findAll('[0-9]', 1) == ['1']",
        "'\\u00e9' == '\u{e9}' && r'\\d' == '\\\\d' && b'\\x61' == bytes('a') && '''a'b''' == \"a'b\"",
        "string(1) == '1' && int('7') == 7 && double('1.5') == 1.5 && bool('true') && string(self.wait) == '5400s' && int(self.when) == 1767323045",
        "(1 / 0 > 0 || true) && !(false && 1 / 0 > 0) && [1, 0].exists(x, 1 / x > 0) // comments count for nothing",
        "self.replicas in [1, 3] && 1 < 1.5 && dyn(1) == dyn(1.0) && dyn('1') != dyn(1) && null == null && self.port != null",
        "'a' < 'b' && b'a' < b'b' && true > false && duration('1s') < duration('2s')",
        "'%e %.2f %s'.format([1200.0, 1234567.891, 1e6]) == '1.200000\u{d7}10\u{2070}\u{b3} 1,234,567.89 1e+06'",
        "'%s'.format([[b'x', duration('1s'), type(1)]]) == '[b\"x\", duration(\"1s\"), int]'",
        "string(1e6) == '1e+06' && string(123456.0) == '123456' && string(0.00001) == '1e-05'",
        "self.tags == ['a', 'b'] && ['a', 'b'] != self.tags && self.tags + ['c'] == ['c', 'a', 'b']",
        "self.ports == self.ports.reverse() && self.ports + self.ports == self.ports.filter(p, true)",
        "self.?port.?name.orValue(self.labels['z']) == 'x' && optional.of(1).or(optional.of(1 / 0)).value() == 1",
        "timestamp('9999-12-31T23:59:59Z') > self.when && int(timestamp('1969-12-31T23:59:59.5Z')) == -1",
        "timestamp('2026-01-01T00:00:00.1234567891Z') == timestamp('2026-01-01T01:00:00.123456789+01:00')",
        "duration('0.3333333333333333333h') == duration('20m') && !isCIDR('10.0.0.0/08') && !isURL('http://a b@c/') && !isURL('http://#%blah$#@') && !isURL('http://a#b') && url('http://<a>/b#c?d#e').getEscapedPath() == '/b%23c'",
    ] {
        assert_eq!(evaluate(rule), "true", "{rule}");
    }
}

#[test]
fn what_cannot_be_evaluated_says_why() {
    for (rule, why) in [
        ("1 / 0 == 1", "division by zero"),
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("self.labels['z'] == ''", "no such key: z"),
        ("self.port.port == 1", "no such key: port"),
        ("self.tags[2] == ''", "index out of bounds: 2"),
        ("self.either > 1", "no such overload"),
        ("uint('+' + string(self.replicas)) == 3u", "type conversion error from 'string' to 'uint'"),
        ("self.when - timestamp('0001-01-01T00:00:00Z') > duration('1s')", "integer overflow"),
        ("timestamp('0001-01-01T00:00:00Z') - duration('1s') < self.when", "timestamp overflow"),
        (
            "'%f'.format([self.name]) == ''",
            "error during formatting: fixed-point clause can only be used on doubles, was given string",
        ),
        ("[dyn(1), dyn(1.5)].sort() == []", "list elements must have the same type"),
        ("int(self.name) == 1", "type conversion error from 'string' to 'int'"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        (
            "lists.range(1000).all(x, lists.range(1000).all(y, x + y >= 0))",
            "operation cancelled: actual cost limit exceeded",
        ),
        ("lists.range(1000000000).size() > 0", "operation cancelled: actual cost limit exceeded"),
        (
            "'a'.replace('', 'aaaaaaaaaa').replace('', 'aaaaaaaaaaaaaaaaaaaaaaaaaa').replace('', self.name + 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa').replace('', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa') == ''",
            "operation cancelled: actual cost limit exceeded",
        ),
    ] {
        assert_eq!(evaluate(rule), format!("failed: {why}"), "{rule}");
    }
}

#[test]
fn what_does_not_compile_is_pointed_at() {
    for (rule, shown) in [
        ("self.nam == ''", "ERROR: <input>:1:5: undefined field 'nam'\n | self.nam == ''\n | ....^"),
        ("other == 1", "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n | other == 1\n | ^"),
        (
            "self.name == 1",
            "ERROR: <input>:1:11: found no matching overload for '_==_' applied to '(string, int)'\n | self.name == 1\n | ..........^",
        ),
        (
            "self.name.size(1) == 1",
            "ERROR: <input>:1:15: found no matching overload for 'size' applied to 'string.(int)'\n | self.name.size(1) == 1\n | ..............^",
        ),
        (
            "self.name &&\nself.tags",
            "ERROR: <input>:1:5: expected type 'bool' but found 'string'\n | self.name &&\n | ....^\nERROR: <input>:2:5: expected type \
             'bool' but found 'list(string)'\n | self.tags\n | ....^",
        ),
        (
            "self.replicas.all(x, true)",
            "ERROR: <input>:1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | \
             self.replicas.all(x, true)\n | ....^",
        ),
        (
            "[1, 'a'].size() == 2",
            "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a'].size() == 2\n | ....^",
        ),
        (
            "self.name.matches('[')",
            "ERROR: <input>:1:19: invalid matches argument\n | self.name.matches('[')\n | ..................^",
        ),
        (
            "self.name == null",
            "ERROR: <input>:1:11: found no matching overload for '_==_' applied to '(string, null)'\n | self.name == null\n | ..........^",
        ),
        ("self.", "ERROR: <input>:1:6: Syntax error: no viable alternative at input '.'\n | self.\n | .....^"),
        (
            "'%d'.format([self.name]) == ''",
            "ERROR: <input>:1:18: error during formatting: decimal clause can only be used on integers, was given string\n | \
             '%d'.format([self.name]) == ''\n | .................^",
        ),
        (
            "'%s %s'.format([1]) == ''",
            "ERROR: <input>:1:15: index 1 out of range\n | '%s %s'.format([1]) == ''\n | ..............^",
        ),
        (
            "'a'.format([1]) == ''",
            "ERROR: <input>:1:11: too many arguments supplied to string.format (expected 0, got 1)\n | 'a'.format([1]) == ''\n | \
             ..........^",
        ),
        ("1 2", "ERROR: <input>:1:3: Syntax error: extraneous input '2' expecting <EOF>\n | 1 2\n | ..^"),
        ("(1", "ERROR: <input>:1:3: Syntax error: missing ')' at '<EOF>'\n | (1\n | ..^"),
        (
            "1 = 1",
            "ERROR: <input>:1:3: Syntax error: token recognition error at: '= '\n | 1 = 1\n | ..^\nERROR: <input>:1:5: Syntax \
             error: extraneous input '1' expecting <EOF>\n | 1 = 1\n | ....^",
        ),
        ("has(self)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(self)\n | ....^"),
    ] {
        assert_eq!(evaluate(rule), format!("refused: {shown}"), "{rule}");
    }
    assert_eq!(evaluate("int('x') == 1"), "refused: type conversion error from 'string' to 'int'");
    let deep = format!("{}1{} == 1", "(".repeat(5000), ")".repeat(5000));
    assert!(evaluate(&deep).contains("expression recursion limit exceeded"));
    let long = format!("1{} == 1", " + 1".repeat(20_000));
    assert!(evaluate(&long).contains("expression recursion limit exceeded"));
    let many = format!("[{}x] == []", "x, ".repeat(30_000));
    assert!(evaluate(&many).len() < 1 << 20, "a hundred mistakes, each with the line that they are in");
    let wide = format!("true{}", " && self.replicas == 3".repeat(4_000));
    assert_eq!(evaluate(&wide), "true");
}

/// A few words more would double each of these.
#[test]
fn types_that_double_end_somewhere() {
    let names: Vec<String> = (0..60).map(|index| format!("v{index}")).collect();
    let bound: String = names.iter().map(|name| format!(".map({name}, {{{name}: {name}}})")).collect();
    evaluate(&format!("[1]{bound} == []"));
    let free: String = names.iter().map(|name| format!("[].all({name}, ")).collect();
    let pairs: Vec<String> = names.windows(2).map(|pair| format!("{} == {{{1}: {1}}}", pair[0], pair[1])).collect();
    evaluate(&format!("{free}{}{}", pairs.join(" && "), ")".repeat(names.len())));
}

/// Upstream reckons what stands in a rule, and what a text in a list is compared with, as next to nothing.
#[test]
fn what_costs_nothing_ends_too() {
    let ended = format!("failed: {}", Failure::TooExpensive);
    let zeros = vec!["0"; 5_000].join(",");
    assert_eq!(evaluate(&format!("lists.range(1000).all(i, [{zeros}].size() > i)")), ended);
    let text = "'x'".to_owned() + &".replace('', 'xxxxxxxxx')".repeat(5);
    assert_eq!(evaluate(&format!("[{text}].all(t, lists.range(10000).all(i, [[t]] == [[t]]))")), ended);
}

#[test]
fn worst_costs_are_known_before() {
    for (rule, cost) in [
        ("self.replicas == 3", 2),
        ("self.name.startsWith('a')", 3),
        ("self.tags.all(t, t.size() > 0)", 2 + 100 * (3 + 2 + 1) + 1),
        ("self.ports.all(p, self.ports.exists(q, q.name == p.name))", 2 + 100 * (3 + 2 + 100 * (4 + 4 + 10) + 1) + 1),
        // Whatever the items are, they count as if each were the object.
        ("(has(self.tags) ? self.tags : []).all(t, t.contains('/'))", 1 + 10 + 100 * (3 + 1) + 1),
    ] {
        let own = own();
        assert_eq!(Program::compile(rule, &own, false).unwrap().most_cost(&own), cost, "{rule}");
    }
}

/// What rules are made of.
const WORDS: &[&str] = &[
    "self",
    "oldSelf",
    ".",
    ".?",
    "(",
    ")",
    "[",
    "]",
    "[?",
    "{",
    "}",
    ",",
    ":",
    "?",
    "&&",
    "||",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    "in",
    "has(",
    "name",
    "replicas",
    "ratio",
    "either",
    "tags",
    "ports",
    "labels",
    "port",
    "when",
    "wait",
    "x",
    "y",
    "1",
    "0",
    "-1",
    "9223372036854775807",
    "2u",
    "1.5",
    "1e300",
    "''",
    "'a'",
    "'[0-9]+'",
    "'%s %d %.3f'",
    "b'a'",
    "true",
    "null",
    "dyn(",
    "type(",
    "string(",
    "int(",
    "uint(",
    "double(",
    "duration(",
    "timestamp(",
    "'1h'",
    "'2026-01-02T03:04:05Z'",
    "size(",
    ".size()",
    ".all(x,",
    ".exists(x, y,",
    ".map(x,",
    ".filter(x,",
    ".transformMap(x, y,",
    ".transformMapEntry(x, y,",
    ".sortBy(x,",
    ".optMap(x,",
    ".matches(",
    ".find(",
    ".split(",
    ".join(",
    ".replace(",
    ".substring(",
    ".charAt(",
    ".indexOf(",
    ".lastIndexOf(",
    ".format(",
    ".sum()",
    ".min()",
    ".sort()",
    ".distinct()",
    ".slice(",
    ".flatten()",
    ".reverse()",
    "lists.range(",
    "sets.contains(",
    "optional.of(",
    "optional.none()",
    ".orValue(",
    ".value()",
    "ip(",
    "cidr(",
    "url(",
    "quantity(",
    "semver(",
    "'10.0.0.1/8'",
    "'http://a:1/b%zz?c=d'",
    "'1e30'",
    "'1.2.3-a.1'",
    ".add(",
    ".getHours(",
    "'+99999:00'",
    ".getQuery()",
    ".masked()",
    ".containsIP(",
    ".compareTo(",
    "format.named(",
    ".validate(",
    "strings.quote(",
];

/// Bytes stand in base64, and are decoded whenever somebody looks at them: that is work, whatever comes of it.
#[test]
fn bytes_are_paid_for_where_they_are_decoded() {
    let blob = shape(Form::Bytes);
    let own = fields("selfType", vec![("blob", blob.clone()), ("blobs", list(blob, ListBy::Place))]);
    let large = "AAAA".repeat(1 << 18);
    let object = json!({"blob": large, "blobs": [large]});
    let work = |rule: &str| {
        let program = Program::compile(rule, &own, false).unwrap();
        let variables = Variables { own: &object, old: None, old_is_optional: false, shape: &own };
        program.evaluate(variables, MOST_WORK).1.work
    };
    let once = (3 << 18) / room::BYTES_A_STEP;
    for rule in [
        "self.blobs.all(x, true)",
        "self.blobs.first().hasValue()",
        "self.blobs[?0].hasValue()",
        "sets.intersects(self.blobs, [])",
        "self.blobs.reverse().size() == 1",
        "self.blobs + self.blobs == []",
        "b'' in self.blobs",
        "'%s'.format([self.blobs]) == ''",
        "self.blob == b''",
    ] {
        assert!(work(rule) >= once, "{rule}: {}", work(rule));
    }
    for rule in ["has(self.blob)", "self.blobs.size() == 1", "'a' in {'a': self.blobs}"] {
        assert!(work(rule) < 100, "{rule}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever somebody writes, and whatever the object is: a value, a failure or a refusal.
    #[test]
    fn nothing_written_is_too_much(words in proptest::collection::vec(0..WORDS.len(), 1..14), depth in 0_usize..3) {
        let own = own();
        let text: String = words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ");
        // Calls that were opened are closed, so that many of them are rules.
        let open = text.matches('(').count().saturating_sub(text.matches(')').count());
        let rule = format!("{text}{}{}", ")".repeat(open), " == self".repeat(depth));
        if let Ok(program) = Program::compile(&rule, &own, false) {
            program.most_cost(&own);
            for object in [object(), json!({}), json!({"name": 1, "replicas": "x", "tags": {}, "ports": [1], "labels": [], "wait": "x"})] {
                let variables = Variables { own: &object, old: Some(&object), old_is_optional: false, shape: &own };
                let (_, spent) = program.evaluate(variables, MOST_WORK);
                prop_assert!(spent.cost <= MOST_PER_CALL + 3_000_000, "{rule}");
            }
        }
    }
}
