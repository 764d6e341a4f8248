use serde_json::json;

use super::*;

fn found(schema: &Value, value: &Value) -> Vec<String> {
    let schema = Schema::new(schema);
    let mut errors = check(&schema, value, None, "");
    errors.extend(repeats(&schema, value));
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn mistakes_are_told_in_kubernetes_words() {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {
    "type": "object", "required": ["cronSpec"], "properties": {
        "cronSpec": {"type": "string", "pattern": "^\\d+$"},
        "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
        "size": {"type": "string", "enum": ["S", "L"], "maxLength": 2},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "ratio": {"type": "number", "multipleOf": 0.5},
        "maybe": {"type": "string", "nullable": true},
        "at": {"type": "string", "format": "date-time"},
        "tags": {"type": "array", "maxItems": 3, "items": {"type": "string", "minLength": 1}, "x-kubernetes-list-type": "set"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                  "items": {"type": "object", "properties": {"port": {"type": "integer"}}}},
        "labels": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}},
        "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    }}}});
    let good = json!({"spec": {"cronSpec": "1"}});
    assert!(found(&schema, &good).is_empty());
    for (field, value, expected) in [
        (
            "cronSpec",
            json!(null),
            vec!["spec.cronSpec: Invalid value: \"null\": spec.cronSpec in body must be of type string: \"null\""],
        ),
        (
            "cronSpec",
            json!("x"),
            vec!["spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should match '^\\d+$'"],
        ),
        (
            "replicas",
            json!("1"),
            vec!["spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""],
        ),
        (
            "replicas",
            json!(1.5),
            vec!["spec.replicas: Invalid value: \"number\": spec.replicas in body must be of type integer: \"number\""],
        ),
        ("replicas", json!(2.0), vec![]),
        (
            "replicas",
            json!(0),
            vec!["spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"],
        ),
        (
            "replicas",
            json!(11),
            vec!["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"],
        ),
        ("size", json!("M"), vec!["spec.size: Unsupported value: \"M\": supported values: \"S\", \"L\""]),
        (
            "size",
            json!("XXL"),
            vec![
                "spec.size: Too long: may not be more than 2 bytes",
                "spec.size: Unsupported value: \"XXL\": supported values: \"S\", \"L\"",
            ],
        ),
        ("port", json!(80), vec![]),
        ("port", json!("http"), vec![]),
        ("ratio", json!(1.5), vec![]),
        ("ratio", json!(1.2), vec!["spec.ratio: Invalid value: 1.2: spec.ratio in body should be a multiple of 0.5"]),
        ("maybe", json!(null), vec![]),
        ("at", json!("2026-01-01T00:00:00Z"), vec![]),
        (
            "at",
            json!("now"),
            vec!["spec.at: Invalid value: \"now\": spec.at in body must be of type date-time: \"now\""],
        ),
        ("tags", json!(["a", "b", "a"]), vec!["spec.tags[2]: Duplicate value: \"a\""]),
        (
            "tags",
            json!(["a", ""]),
            vec!["spec.tags[1]: Invalid value: \"\": spec.tags[1] in body should be at least 1 chars long"],
        ),
        ("tags", json!(["a", "b", "c", "d"]), vec!["spec.tags: Too many: 4: must have at most 3 items"]),
        ("ports", json!([{"port": 1}, {"port": 2}, {"port": 1}]), vec!["spec.ports[2]: Duplicate value: {\"port\":1}"]),
        (
            "labels",
            json!({"a": 1}),
            vec![
                "spec.labels.a: Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
            ],
        ),
        ("one", json!({"a": "x"}), vec![]),
        (
            "one",
            json!({"a": "x", "b": "y"}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ],
        ),
    ] {
        let mut object = good.clone();
        object["spec"][field] = value;
        assert_eq!(found(&schema, &object), expected, "{object}");
    }
    assert_eq!(found(&schema, &json!({})), ["spec: Required value"]);
    assert_eq!(found(&schema, &json!({"spec": {}})), ["spec.cronSpec: Required value"]);
}

#[test]
fn checks_end() {
    let alternatives = vec![json!({"minLength": 2}); 100];
    let schema = Schema::new(&json!({"type": "array", "items": {"type": "string", "anyOf": alternatives}}));
    let errors = check_within(5000, &schema, &json!(vec!["x"; 100]), None, "spec");
    assert!(errors[0].detail.contains("too large to be checked"), "{errors:?}");
    // A name of a megabyte, written out for a million items, is a terabyte.
    let items = json!({"type": "array", "items": {"type": "integer"}});
    let schema = Schema::new(&json!({"type": "object", "additionalProperties": items}));
    let object = json!({"x".repeat(1 << 20): vec![0; 1 << 20]});
    let errors = check(&schema, &object, None, "");
    assert!(errors[0].detail.contains("too large to be checked"), "{}", errors[0].detail);
}
