package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	groups = []string{"provider", "model", "environment", "user_id"}
	sums   = []string{"total_cost_usd", "prompt_cost_usd", "completion_cost_usd", "total_tokens"}
)

// hoursOfCosts has finished hours from the aggregate, and the hours after its newest from the traces. The aggregate may
// have a part of an hour that ended less than an hour ago.
const hoursOfCosts = `WITH newest AS (
  SELECT coalesce(least(max(bucket) + interval '1 hour', date_trunc('hour', now() - interval '1 hour', 'UTC')), '-infinity')
    AS finished
  FROM cost_analysis_hourly
),
hours AS (
  SELECT bucket, provider, model, environment, user_id, request_count,
    total_cost_usd, prompt_cost_usd, completion_cost_usd, total_tokens
  FROM cost_analysis_hourly, newest WHERE bucket >= $2 AND bucket < $3 AND bucket < finished
  UNION ALL
  SELECT time_bucket('1 hour', ts), provider, model, environment, user_id, count(*),
    sum(total_cost_usd), sum(prompt_cost_usd), sum(completion_cost_usd), sum(total_tokens)
  FROM llm_traces, newest WHERE ts >= $2 AND ts < $3 AND ts >= finished
  GROUP BY 1, 2, 3, 4, 5
), grouped AS (
  SELECT %s FROM hours GROUP BY %s
)
SELECT row_to_json(cost)::text, json_build_array(%s)::text, false, NULL::bigint FROM grouped,
LATERAL (SELECT %s) AS cost
WHERE true %%s ORDER BY %s LIMIT $1`

func (service *Service) readCosts(call *Call) error {
	limit, err := queryLimit(call.query, 10_000, 10_000)
	if err != nil {
		return err
	}
	from, err := queryHour(call.query, "from")
	if err != nil {
		return err
	}
	to, err := queryHour(call.query, "to")
	if err != nil {
		return err
	}
	bucket, err := queryBucket(call.query)
	if err != nil {
		return err
	}
	columns, err := queryGroups(call.query)
	if err != nil {
		return err
	}
	list := costsBy(bucket, columns)
	list.limit, list.values = limit, []any{from, to}
	return service.page(call, list, false)
}

// costsBy returns the list of one bucket and some groups, null last.
func costsBy(bucket string, columns []string) List {
	inner := append([]string{bucket + " AS bucket"}, columns...)
	outer := append([]string{strings.Replace(formatTime("bucket"), ".US", "", 1) + " AS bucket"}, columns...)
	group, position, place := []string{"1"}, []string{"grouped.bucket"}, []string{"grouped.bucket"}
	for index, column := range columns {
		group = append(group, strconv.Itoa(index+2))
		position = append(position, "grouped."+column)
		place = append(place, fmt.Sprintf("grouped.%s IS NULL", column), fmt.Sprintf("coalesce(grouped.%s, '')", column))
	}
	inner = append(inner, "sum(request_count)::bigint AS request_count")
	for _, column := range sums {
		inner = append(inner, fmt.Sprintf("sum(%[1]s) AS %[1]s", column))
	}
	outer = append(append(outer, "request_count"), sums...)
	after := []string{"(%[1]s::json ->> 0)::timestamptz"}
	for index := range columns {
		after = append(after, fmt.Sprintf("(%%[1]s::json ->> %[1]d) IS NULL, coalesce(%%[1]s::json ->> %[1]d, '')", index+1))
	}
	return List{
		name: "costs " + bucket + strings.Join(columns, ","),
		sql: fmt.Sprintf(hoursOfCosts, strings.Join(inner, ", "), strings.Join(group, ", "),
			strings.Join(position, ", "), strings.Join(outer, ", "), strings.Join(place, ", ")),
		after: fmt.Sprintf("AND (%s) > (%s)", strings.Join(place, ", "), strings.Join(after, ", ")),
	}
}

// queryHour returns the first full hour (UTC) that does not begin before the parameter.
func queryHour(query url.Values, name string) (time.Time, error) {
	at, err := parseTime(query.Get(name))
	if err != nil {
		return at, invalid(fmt.Sprintf("%s: %s", name, err))
	}
	hour := at.Truncate(time.Hour)
	if hour.Before(at) {
		hour = hour.Add(time.Hour)
	}
	return hour, nil
}

func queryBucket(query url.Values) (string, error) {
	if !query.Has("bucket") {
		return "bucket", nil
	}
	sql, isKnown := map[string]string{
		"hour": "bucket", "day": "date_trunc('day', bucket, 'UTC')", "total": "$2::timestamptz",
	}[query.Get("bucket")]
	if !isKnown {
		return "", invalid("bucket: must be hour, day or total")
	}
	return sql, nil
}

func queryGroups(query url.Values) ([]string, error) {
	if !query.Has("group_by") {
		return groups, nil
	}
	if query.Get("group_by") == "none" {
		return nil, nil
	}
	named := strings.Split(query.Get("group_by"), ",")
	for position, column := range named {
		if !slices.Contains(groups, column) || slices.Contains(named[:position], column) {
			return nil, &Problem{
				status: http.StatusBadRequest, detail: "group_by: must be some of provider,model,environment,user_id, or none",
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(groups), func(column string) bool { return !slices.Contains(named, column) }), nil
}
