package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

const pageBytes = 8 << 20

// List is a query that is answered in pages. Each of its rows is a JSON text, and the position of the row as a JSON list.
type List struct {
	name    string
	sql     string // has %s in the place of "and after the cursor"
	after   string // the condition of a row after the position in the parameter
	values  []any
	limit   int
	isSpans bool
}

func formatTime(column string) string {
	return fmt.Sprintf(`to_char(%s AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`, column)
}

const isDuplicate = `EXISTS (SELECT FROM llm_traces AS earlier WHERE
  earlier.trace_id = stored.trace_id AND earlier.span_id = stored.span_id AND earlier.ts < stored.ts)`

// spans returns a query over llm_traces; a row is a duplicate if the span is also stored with an earlier time. Each row
// has the number of duplicates of the list, or null if those of the page count.
func spans(condition, order, duplicates string) string {
	var columns []string
	for _, field := range traces.fields {
		column := field.name
		if field.selectSQL != "" {
			column = field.selectSQL + " AS " + field.name
		}
		columns = append(columns, column)
	}
	return fmt.Sprintf(`SELECT row_to_json(span)::text, json_build_array(stored.ts, stored.trace_id, stored.span_id)::text,
  span.duplicate, %s
FROM llm_traces AS stored, LATERAL (SELECT %s, %s AS duplicate) AS span
WHERE %s %%s ORDER BY %s LIMIT $1`, duplicates, strings.Join(columns, ", "), isDuplicate, condition, order)
}

func (service *Service) readTrace(call *Call) error {
	limit, err := queryLimit(call.query, 1_000, 1_000)
	if err != nil {
		return err
	}
	list := List{
		name: "trace", limit: limit, isSpans: true, values: []any{call.traceID},
		sql: spans("stored.trace_id = $2", "stored.ts, stored.span_id",
			"(SELECT count(*) FROM llm_traces AS stored WHERE trace_id = $2 AND "+isDuplicate+")"),
		after: `AND (stored.ts, stored.span_id) > ((%[1]s::json ->> 0)::timestamptz, %[1]s::json ->> 2)`,
	}
	return service.page(call, list, true)
}

func (service *Service) readTraces(call *Call) error {
	limit, err := queryLimit(call.query, 100, 1_000)
	if err != nil {
		return err
	}
	filter := func(name string) any {
		if !call.query.Has(name) {
			return nil
		}
		return call.query.Get(name)
	}
	list := List{
		name: "traces", limit: limit, isSpans: true, values: []any{},
		after: `AND (stored.ts, stored.trace_id, stored.span_id) <
  ((%[1]s::json ->> 0)::timestamptz, %[1]s::json ->> 1, %[1]s::json ->> 2)`,
	}
	condition := "true"
	for _, name := range []string{"provider", "model"} {
		if value := filter(name); value != nil {
			list.values = append(list.values, value)
			condition += fmt.Sprintf(" AND stored.%s = $%d", name, len(list.values)+1)
		}
	}
	list.sql = spans(condition, "stored.ts DESC, stored.trace_id DESC, stored.span_id DESC", "NULL::bigint")
	return service.page(call, list, false)
}

func queryLimit(query url.Values, usual, highest int) (int, error) {
	if !query.Has("limit") {
		return usual, nil
	}
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 1 || limit > highest {
		return 0, invalid(fmt.Sprintf("limit: must be an integer from 1 to %d", highest))
	}
	return limit, nil
}

// page answers with one page of a list. A list that must not be empty is 404 if it is.
func (service *Service) page(call *Call, list List, mustExist bool) error {
	values := append([]any{list.limit + 1}, list.values...)
	condition := ""
	if call.query.Has("cursor") {
		position, err := decodeCursor(list.name, call.query.Get("cursor"))
		if err != nil {
			return err
		}
		values = append(values, position)
		condition = fmt.Sprintf(list.after, fmt.Sprintf("$%d", len(values)))
	}
	lease := service.responses.lease(call.key.id)
	defer lease.release()
	page := &page{list: list, lease: lease}
	err := service.database.use(call.request.Context(), func(ctx context.Context, connection *pgxpool.Conn) error {
		return page.read(ctx, connection, fmt.Sprintf(list.sql, condition), values)
	})
	switch {
	case err != nil:
		return err
	case page.count == 0 && mustExist && condition == "":
		return &Problem{status: http.StatusNotFound, detail: "there is no such trace"}
	}
	return call.send(http.StatusOK, "application/json", page.json())
}

// page collects the rows of a response.
type page struct {
	list       List
	lease      *Lease
	items      bytes.Buffer
	count      int
	duplicates int  // of the page
	ofList     *int // duplicates of the whole list
	position   string
	hasNext    bool
}

func (page *page) read(ctx context.Context, connection *pgxpool.Conn, sql string, values []any) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := connection.Query(ctx, sql, values...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var item, position string
		var isDuplicate bool
		if err := rows.Scan(&item, &position, &isDuplicate, &page.ofList); err != nil {
			return err
		}
		if page.count == page.list.limit {
			page.hasNext = true
			return nil
		}
		isFull := page.count > 0 && page.items.Len()+len(item) > pageBytes
		if isFull || !page.lease.take(len(item)+1) {
			if page.hasNext = page.count > 0; !page.hasNext {
				return busy(http.StatusTooManyRequests, "the responses in progress have no room for another one")
			}
			cancel() // closes the connection: what remains may be a thousand times as much
			return nil
		}
		page.add(item, position, isDuplicate)
	}
	return rows.Err()
}

func (page *page) add(item, position string, isDuplicate bool) {
	if page.count > 0 {
		page.items.WriteByte(',')
	}
	page.items.WriteString(item)
	page.count++
	page.position = position
	if isDuplicate {
		page.duplicates++
	}
}

func (page *page) json() []byte {
	next := []byte("null")
	if page.hasNext {
		next, _ = json.Marshal(encodeCursor(page.list.name, page.position))
	}
	duplicates := ""
	if page.list.isSpans {
		if page.ofList != nil {
			page.duplicates = *page.ofList
		}
		duplicates = fmt.Sprintf(`,"duplicates":%d`, page.duplicates)
	}
	return fmt.Appendf(nil, `{"items":[%s],"next":%s%s}`, page.items.Bytes(), next, duplicates)
}

// A cursor is the name of its list and the position of the last row.
func encodeCursor(list, position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(list + " " + position))
}

func decodeCursor(list, cursor string) (string, error) {
	decoded, err := base64.RawURLEncoding.DecodeString(cursor)
	position, isOfList := strings.CutPrefix(string(decoded), list+" ")
	var values []any
	if err != nil || !isOfList || json.Unmarshal([]byte(position), &values) != nil {
		return "", invalid("cursor: is not of this list")
	}
	return position, nil
}
