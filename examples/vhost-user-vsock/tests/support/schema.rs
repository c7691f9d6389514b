//! A schema of an OpenAPI document, as far as ours goes, and what was seen of it.

use std::collections::BTreeSet;

use serde_json::Value;

/// The words that are understood; any other fails the test.
const WORDS: &[&str] = &[
    "$ref",
    "type",
    "description",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "minimum",
    "maximum",
    "maxItems",
    "maxLength",
    "pattern",
    "oneOf",
];

/// An OpenAPI document.
pub(crate) struct Document {
    document: Value,
    seen: BTreeSet<String>,
}

impl Document {
    pub(crate) fn new(document: Value) -> Self {
        Self {
            document,
            seen: BTreeSet::new(),
        }
    }

    #[track_caller]
    pub(crate) fn operation(&self, path: &str, method: &str) -> &Value {
        let operation = &self.document["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "no {method} {path}");
        operation
    }

    /// Method, path and status of all that may be answered.
    pub(crate) fn statuses(&self) -> BTreeSet<(String, String, String)> {
        let mut statuses = BTreeSet::new();
        for (path, operations) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let Some(responses) = operation["responses"].as_object() else {
                    continue; // The parameters that they share.
                };
                for status in responses.keys() {
                    statuses.insert((method.clone(), path.clone(), status.clone()));
                }
            }
        }
        statuses
    }

    /// Fails if the value is not what the schema says.
    #[track_caller]
    pub(crate) fn check(&mut self, schema: &Value, value: &Value) {
        if let Err(problem) = self.find_problem("", schema, value) {
            panic!("{problem}: {value}");
        }
    }

    fn component(&self, reference: &Value) -> Option<(String, Value)> {
        let name = reference.as_str()?.strip_prefix("#/components/schemas/")?;
        let schema = self.document["components"]["schemas"].get(name)?;
        Some((name.to_owned(), schema.clone()))
    }

    fn find_problem(&mut self, at: &str, schema: &Value, value: &Value) -> Result<(), String> {
        let words = schema.as_object().ok_or("no schema")?;
        if let Some(word) = words.keys().find(|word| !WORDS.contains(&word.as_str())) {
            return Err(format!("{at}: the word '{word}' is not understood"));
        }
        if let Some(reference) = words.get("$ref") {
            let (name, schema) = self.component(reference).ok_or("a reference to nothing")?;
            return self.find_problem(&name, &schema, value);
        }
        if let Some(variants) = schema["oneOf"].as_array() {
            let variant = variants.iter().find(|variant| is_of(variant, value));
            let variant = variant.ok_or(format!("{at}: none of its variants"))?;
            let name = format!("{at}/{}", value["event"].as_str().unwrap_or_default());
            return self.find_problem(&name, variant, value);
        }
        if !types(schema).any(|name| has_type(name, value)) {
            return Err(format!("{at}: not {}", schema["type"]));
        }
        bounds(at, schema, value)?;
        if let (Some(items), Some(values)) = (words.get("items"), value.as_array()) {
            for value in values {
                self.find_problem(at, items, value)?;
            }
        }
        match value.as_object() {
            Some(fields) => self.find_problem_in_fields(at, schema, fields),
            None => Ok(()),
        }
    }

    fn find_problem_in_fields(
        &mut self,
        at: &str,
        schema: &Value,
        fields: &serde_json::Map<String, Value>,
    ) -> Result<(), String> {
        let required = schema["required"].as_array().into_iter().flatten();
        for name in required.filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(format!("{at}: no {name}"));
            }
        }
        for (name, value) in fields {
            let at = format!("{at}.{name}");
            let others = &schema["additionalProperties"];
            match schema["properties"].get(name) {
                Some(schema) => {
                    self.seen.insert(at.clone());
                    self.find_problem(&at, schema, value)?;
                }
                None if others.is_object() => self.find_problem(&at, others, value)?,
                // A schema that says nothing of its fields, as that of this document.
                None if others.is_null() => (),
                None => return Err(format!("{at} is unknown")),
            }
        }
        Ok(())
    }

    /// The fields that no value had.
    pub(crate) fn unseen(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (name, schema) in self.document["components"]["schemas"].as_object().unwrap() {
            add_fields(name, schema, &mut all);
        }
        all.difference(&self.seen).cloned().collect()
    }
}

fn add_fields(at: &str, schema: &Value, fields: &mut BTreeSet<String>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        add_fields(&at, schema, fields);
        fields.insert(at);
    }
    for variant in schema["oneOf"].as_array().into_iter().flatten() {
        let event = variant["properties"]["event"]["enum"][0].as_str();
        add_fields(&format!("{at}/{}", event.unwrap()), variant, fields);
    }
}

fn is_of(variant: &Value, value: &Value) -> bool {
    variant["properties"]["event"]["enum"][0] == value["event"]
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let one = schema["type"].as_str().into_iter();
    let many = schema["type"].as_array().into_iter().flatten();
    one.chain(many.filter_map(Value::as_str))
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn bounds(at: &str, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        return Err(format!("{at}: none of {values:?}"));
    }
    let most = |word: &str| schema[word].as_u64();
    let items = value.as_array().map(|items| items.len() as u64);
    let length = value.as_str().map(|text| text.chars().count() as u64);
    let exceeds = |size: Option<u64>, word| size.zip(most(word)).is_some_and(|(is, may)| is > may);
    if exceeds(items, "maxItems") || exceeds(length, "maxLength") {
        return Err(format!("{at}: too long"));
    }
    let Some(number) = value.as_f64() else {
        return Ok(());
    };
    let is_low = schema["minimum"]
        .as_f64()
        .is_some_and(|least| number < least);
    let is_high = schema["maximum"].as_f64().is_some_and(|most| number > most);
    if is_low || is_high {
        return Err(format!("{at}: out of bounds"));
    }
    Ok(())
}
