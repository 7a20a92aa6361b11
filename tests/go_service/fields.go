package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	longestName = 128
	longestText = 2 << 20
	mostTags    = 64
	aheadAtMost = 10 * time.Minute
	day         = 24 * time.Hour
)

var identifier = regexp.MustCompile(`^[0-9A-Za-z._:+=-]{1,128}$`)

// A parser returns the value of a field as a parameter of a statement.
type parser func(raw json.RawMessage) (any, error)

// Field is a column that a client may send.
type Field struct {
	name       string
	required   bool
	parse      parser
	defaultSQL string // in the place of an absent value
	startSQL   string // the value of a span that has only started, which replaces no stored value
	selectSQL  string // the form in a response, if it is not the column itself
}

// Table is a table that clients write to.
type Table struct {
	name   string
	fields []Field
}

func (table *Table) index(name string) int {
	return slices.IndexFunc(table.fields, func(field Field) bool { return field.name == name })
}

func required(name string, parse parser) Field {
	return Field{name: name, required: true, parse: parse}
}
func optional(name string, parse parser) Field { return Field{name: name, parse: parse} }

var traces = Table{"llm_traces", []Field{
	{name: "ts", required: true, parse: timestamp(90 * day), selectSQL: formatTime("ts")},
	required("trace_id", traceID),
	required("span_id", id),
	optional("parent_span_id", id),
	required("span_name", shortText),
	{name: "span_kind", parse: shortText, defaultSQL: "'internal'", startSQL: "'internal'"},
	required("provider", shortText),
	required("model", shortText),
	required("input_type", shortText),
	optional("input_text", text),
	optional("output_text", text),
	optional("input_messages", document('[')),
	optional("prompt_tokens", integer(0, math.MaxInt32)),
	optional("completion_tokens", integer(0, math.MaxInt32)),
	optional("total_tokens", integer(0, math.MaxInt32)),
	cost("prompt_cost_usd"),
	cost("completion_cost_usd"),
	cost("total_cost_usd"),
	{name: "duration_ms", required: true, parse: integer(0, math.MaxInt32), startSQL: "0"},
	optional("ttft_ms", integer(0, math.MaxInt32)),
	{name: "status_code", required: true, parse: oneOf("OK", "ERROR", "UNSET"), startSQL: "'UNSET'"},
	optional("finish_reason", shortText),
	optional("error_message", text),
	optional("user_id", shortText),
	optional("session_id", shortText),
	optional("environment", shortText),
	optional("sample_rate", number(0, 1)),
	{name: "sampled", parse: boolean, defaultSQL: "true", startSQL: "true"},
	optional("tags", texts),
	optional("attributes", document('{')),
	optional("resource_attributes", document('{')),
	optional("events", document('[')),
	optional("links", document('[')),
}}

var metrics = Table{"llm_metrics", []Field{
	required("ts", timestamp(37*day)),
	required("metric_name", shortText),
	required("metric_type", oneOf("counter", "gauge", "histogram")),
	required("provider", shortText),
	required("model", shortText),
	optional("environment", shortText),
	optional("user_id", shortText),
	required("value", number(-math.MaxFloat64, math.MaxFloat64)),
	optional("count", integer(0, math.MaxInt64)),
	optional("sum", number(-math.MaxFloat64, math.MaxFloat64)),
	optional("min", number(-math.MaxFloat64, math.MaxFloat64)),
	optional("max", number(-math.MaxFloat64, math.MaxFloat64)),
	optional("tags", document('{')),
}}

var logs = Table{"llm_logs", []Field{
	required("ts", timestamp(37*day)),
	required("log_level", shortText),
	required("message", text),
	optional("trace_id", traceID),
	optional("span_id", id),
	optional("provider", shortText),
	optional("model", shortText),
	optional("environment", shortText),
	optional("attributes", document('{')),
}}

// parseItem returns the values of an item in the order of the table's fields.
func (table *Table) parseItem(raw json.RawMessage) ([]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return nil, fmt.Errorf(": must be an object")
	}
	values := make([]any, len(table.fields))
	seen := make([]bool, len(table.fields))
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, fmt.Errorf(": is not JSON")
		}
		field, _ := token.(string)
		position := table.index(field)
		if position < 0 || seen[position] {
			return nil, fmt.Errorf(": has a field that is unknown or repeated")
		}
		seen[position] = true
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, fmt.Errorf(".%s: is not JSON", field)
		}
		if string(value) == "null" {
			continue
		}
		if values[position], err = table.fields[position].parse(value); err != nil {
			return nil, fmt.Errorf(".%s: %w", field, err)
		}
	}
	for position, field := range table.fields {
		if field.required && values[position] == nil {
			return nil, fmt.Errorf(".%s: is required", field.name)
		}
	}
	return values, nil
}

func timestamp(retention time.Duration) parser {
	return func(raw json.RawMessage) (any, error) {
		value, err := text(raw)
		if err != nil {
			return nil, err
		}
		at, err := parseTime(value.(string))
		switch {
		case err != nil:
			return nil, err
		case time.Since(at) > retention:
			return nil, fmt.Errorf("must not be older than %d days", retention/day)
		case time.Until(at) > aheadAtMost:
			return nil, fmt.Errorf("must be at most 10 minutes ahead")
		}
		return at, nil
	}
}

func parseTime(value string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, strings.ToUpper(value))
	if err != nil || strings.Contains(value, ",") {
		return at, fmt.Errorf("must be a time of RFC 3339 with a time zone")
	}
	return at.UTC().Truncate(time.Microsecond), nil
}

func text(raw json.RawMessage) (any, error) {
	var value string
	if err := json.Unmarshal(raw, &value); err != nil {
		return nil, fmt.Errorf("must be a text")
	}
	if len(value) > longestText {
		return nil, fmt.Errorf("must have at most 2 MiB")
	}
	if strings.ContainsRune(value, 0) {
		return nil, fmt.Errorf("must not have U+0000")
	}
	// The decoder replaces half of a surrogate pair by U+FFFD; that would not be the text that was sent.
	if strings.ContainsRune(value, utf8.RuneError) && hasLoneSurrogate(raw) {
		return nil, fmt.Errorf("must not have half of a surrogate pair")
	}
	return value, nil
}

func hasLoneSurrogate(raw []byte) bool {
	literal := bytes.Count(raw, []byte("\uFFFD")) + bytes.Count(bytes.ToLower(raw), []byte(`\ufffd`))
	var decoded string
	_ = json.Unmarshal(raw, &decoded)
	return strings.Count(decoded, "\uFFFD") > literal
}

func shortText(raw json.RawMessage) (any, error) {
	value, err := text(raw)
	if err != nil {
		return nil, err
	}
	if count := utf8.RuneCountInString(value.(string)); count < 1 || count > longestName {
		return nil, fmt.Errorf("must have 1 to %d characters", longestName)
	}
	return value, nil
}

func id(raw json.RawMessage) (any, error) {
	value, err := text(raw)
	if err == nil && !identifier.MatchString(value.(string)) {
		err = fmt.Errorf("must match %s", identifier)
	}
	return value, err
}

func traceID(raw json.RawMessage) (any, error) {
	value, err := id(raw)
	if err == nil && (value == "." || value == "..") {
		err = fmt.Errorf("must not be . or ..")
	}
	return value, err
}

func oneOf(allowed ...string) parser {
	return func(raw json.RawMessage) (any, error) {
		value, err := text(raw)
		if err == nil && !slices.Contains(allowed, value.(string)) {
			err = fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
		}
		return value, err
	}
}

func integer(lowest, highest int64) parser {
	return func(raw json.RawMessage) (any, error) {
		value, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || value < lowest || value > highest {
			return nil, fmt.Errorf("must be an integer from %d to %d", lowest, highest)
		}
		return value, nil
	}
}

func number(lowest, highest float64) parser {
	return func(raw json.RawMessage) (any, error) {
		var value float64
		if err := json.Unmarshal(raw, &value); err != nil || value < lowest || value > highest {
			return nil, fmt.Errorf("must be a number from %g to %g", lowest, highest)
		}
		return value, nil
	}
}

// cost is a field of numeric(12,8); its text is stored, so that no digit is lost.
func cost(name string) Field {
	inRange := number(0, 9_999.999_999_99)
	return optional(name, func(raw json.RawMessage) (any, error) {
		if _, err := inRange(raw); err != nil {
			return nil, fmt.Errorf("must be a number from 0 to less than 10,000")
		}
		return string(raw), nil
	})
}

func boolean(raw json.RawMessage) (any, error) {
	var value bool
	if err := json.Unmarshal(raw, &value); err != nil {
		return nil, fmt.Errorf("must be true or false")
	}
	return value, nil
}

func texts(raw json.RawMessage) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if start, err := decoder.Token(); err != nil || start != json.Delim('[') {
		return nil, fmt.Errorf("must be a list of texts")
	}
	values := []string{}
	for decoder.More() {
		var element json.RawMessage
		if err := decoder.Decode(&element); err != nil || len(values) == mostTags {
			return nil, fmt.Errorf("must have at most %d texts", mostTags)
		}
		value, err := shortText(element)
		if err != nil {
			return nil, fmt.Errorf("each %w", err)
		}
		values = append(values, value.(string))
	}
	return values, nil
}

// document is an object or a list that is stored as jsonb. The database refuses U+0000 and half of a surrogate pair in it.
func document(start byte) parser {
	return func(raw json.RawMessage) (any, error) {
		if raw[0] != start {
			return nil, fmt.Errorf("must be %s", map[byte]string{'{': "an object", '[': "a list"}[start])
		}
		if len(raw) > longestText {
			return nil, fmt.Errorf("must have at most 2 MiB")
		}
		return raw, nil
	}
}
