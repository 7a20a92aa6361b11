package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	mostItems      = 1_000
	commitAttempts = 3
)

// statement returns the INSERT of one row. A span that is sent again updates its row with the values that are given.
func (table *Table) statement() string {
	var columns, values, updates []string
	for position, field := range table.fields {
		given := fmt.Sprintf("$%d", position+1)
		value := given
		if field.defaultSQL != "" {
			value = fmt.Sprintf("coalesce(%s, %s)", given, field.defaultSQL)
		}
		columns, values = append(columns, field.name), append(values, value)
		if !slices.Contains(keyOfTraces, field.name) {
			replacing := given
			if field.startSQL != "" {
				replacing = fmt.Sprintf("nullif(%s, %s)", given, field.startSQL)
			}
			updates = append(updates, fmt.Sprintf("%s = coalesce(%s, %s.%s)", field.name, replacing, table.name, field.name))
		}
	}
	insert := fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table.name, strings.Join(columns, ", "), strings.Join(values, ", "))
	if table != &traces {
		return insert
	}
	return fmt.Sprintf("%s ON CONFLICT (%s) DO UPDATE SET %s", insert, strings.Join(keyOfTraces, ", "), strings.Join(updates, ", "))
}

var keyOfTraces = []string{"trace_id", "span_id", "ts"}

// write returns the handler of POST for a table.
func (service *Service) write(table *Table) handler {
	statement := table.statement()
	return func(call *Call) error {
		rows, err := service.readItems(call, table)
		if err != nil {
			return err
		}
		service.metrics.pendingWrites.Inc()
		err = service.store(call.request.Context(), statement, rows)
		service.metrics.pendingWrites.Dec()
		if err != nil {
			service.metrics.writes.WithLabelValues("error").Inc()
			return err
		}
		service.metrics.writes.WithLabelValues("success").Inc()
		return call.respond(http.StatusCreated, map[string]int{"accepted": len(rows)})
	}
}

func (service *Service) readItems(call *Call, table *Table) ([][]any, error) {
	body, release, err := service.readBody(call)
	if err != nil {
		return nil, err
	}
	defer release()
	rows, err := parseItems(body, table)
	if table == &traces {
		// In one order of their keys, two writes do not wait for each other.
		slices.SortStableFunc(rows, compareSpans)
	}
	return rows, err
}

// parseItems reads {"items": [...]} item by item, so that a hostile body takes no more memory than its bytes.
func parseItems(body []byte, table *Table) ([][]any, error) {
	if !utf8.Valid(body) || !json.Valid(body) {
		return nil, invalid("the body is not JSON in UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	for _, expected := range []json.Token{json.Delim('{'), "items", json.Delim('[')} {
		if token, err := decoder.Token(); err != nil || token != expected {
			return nil, invalid(`the body must be {"items": [...]}`)
		}
	}
	rows := [][]any{}
	for decoder.More() {
		if len(rows) == mostItems {
			return nil, &Problem{status: http.StatusRequestEntityTooLarge, detail: "a request has at most 1,000 items"}
		}
		var item json.RawMessage
		if err := decoder.Decode(&item); err != nil {
			return nil, invalid("the body is not JSON in UTF-8")
		}
		row, err := table.parseItem(item)
		if err != nil {
			return nil, invalid(fmt.Sprintf("items[%d]%s", len(rows), err))
		}
		rows = append(rows, row)
	}
	for _, expected := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if token, err := decoder.Token(); err != nil || token != expected {
			return nil, invalid(`the body must have no field but "items"`)
		}
	}
	return rows, nil
}

func compareSpans(left, right []any) int {
	at := traces.index("ts")
	trace, span := traces.index("trace_id"), traces.index("span_id")
	return cmp.Or(
		strings.Compare(left[trace].(string), right[trace].(string)),
		strings.Compare(left[span].(string), right[span].(string)),
		left[at].(time.Time).Compare(right[at].(time.Time)),
	)
}

// store commits all rows or none.
func (service *Service) store(ctx context.Context, statement string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // a client that left gets no answer, and its write is whole
	return service.database.use(ctx, func(ctx context.Context, connection *pgxpool.Conn) error {
		for attempt := 1; ; attempt++ {
			err := pgx.BeginFunc(ctx, connection, func(transaction pgx.Tx) error {
				batch := &pgx.Batch{}
				for _, row := range rows {
					batch.Queue(statement, row...)
				}
				return transaction.SendBatch(ctx, batch).Close()
			})
			if attempt == commitAttempts || !isConflict(err) {
				return err
			}
		}
	})
}

// isConflict is true for a deadlock or a failed serialization, which another attempt passes.
func isConflict(err error) bool {
	var rejected *pgconn.PgError
	return errors.As(err, &rejected) && (rejected.Code == "40P01" || rejected.Code == "40001")
}
