use super::*;

fn found(schema: &Value) -> Vec<String> {
    mistakes(schema, &Path::Field(&Path::Root, "schema")).iter().map(ToString::to_string).collect()
}

#[test]
fn structural_schemas_pass() {
    for schema in [
        json!({"type": "object"}),
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        json!({"type": "object", "properties": {
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}}},
            "spec": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": "string", "default": "x"},
                "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                         "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string"}}}},
                "free": {"x-kubernetes-preserve-unknown-fields": true},
                "map": {"type": "object", "additionalProperties": {"type": "string"}}
            }, "oneOf": [{"required": ["a"]}, {"properties": {"a": {"minLength": 3}}}],
            "x-kubernetes-validations": [{"rule": "self.a != ''", "message": "no"}]}
        }}),
    ] {
        assert_eq!(found(&schema), Vec::<String>::new(), "{schema}");
    }
}

#[test]
fn what_is_not_structural_is_named_in_kubernetes_words() {
    for (schema, expected) in [
        (json!({}), vec!["schema.type: Required value: must not be empty at the root"]),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            vec!["schema.type: Invalid value: \"array\": must be object at the root"],
        ),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            vec!["schema.properties[a].type: Required value: must not be empty for specified object fields"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            vec!["schema.properties[a].items: Required value: must be specified"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "text"}}}),
            vec![
                "schema.properties[a].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \
                 \"number\", \"object\", \"string\"",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "string"}]}}}),
            vec!["schema.properties[a].anyOf[0].type: Forbidden: must be empty to be structural"],
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"b": {"minLength": 1}}}]}),
            vec!["schema.properties[b]: Required value: because it is defined in schema.anyOf[0].properties[b]"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
            vec![
                "schema.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: unclosed group",
            ],
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "required": ["x"]}}}),
            vec![
                "schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata \
                 is implicitly specified",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            vec![
                "schema.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map",
                "items": {"type": "object", "properties": {"n": {"type": "string"}}}, "x-kubernetes-list-map-keys": ["n"]}}}),
            vec![
                "schema.properties[a].items.properties[n].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
    ] {
        assert_eq!(found(&schema), expected, "{schema}");
    }
}
