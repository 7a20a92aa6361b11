package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Service answers all requests.
type Service struct {
	fleet     string
	database  *Database
	keys      *Keys
	metrics   *Metrics
	requests  *Budget
	bodies    *Budget
	responses *Budget
	draining  atomic.Bool
	endpoints map[string]endpoint
}

// Call is one request and its response.
type Call struct {
	writer  http.ResponseWriter
	request *http.Request
	query   url.Values
	traceID string
	key     *Key
	status  int
}

type handler func(call *Call) error

// An endpoint has a handler for one method, and the scope that its keys need; the public ones have none.
type endpoint struct {
	method string
	scope  string
	handle handler
}

// Problem is an error with the status of its response.
type Problem struct {
	status     int
	detail     string
	retryAfter int
	allow      string
}

func (problem *Problem) Error() string { return problem.detail }

func invalid(detail string) error { return &Problem{status: http.StatusBadRequest, detail: detail} }

func busy(status int, detail string) error {
	return &Problem{status: status, detail: detail, retryAfter: 1}
}

const (
	routeOfTrace = "/v1/traces/{trace_id}"
	routeOfOther = "other"
)

func newService(settings Settings, database *Database) *Service {
	service := &Service{
		fleet: settings.Fleet, database: database, keys: newKeys(database), metrics: newMetrics(settings, database),
		requests:  newBudget(mostRequests, mostRequestsOfKey),
		bodies:    newBudget(memoryOfBodies, memoryOfBodies/2),
		responses: newBudget(memoryOfResponses, memoryOfResponses/2),
	}
	service.endpoints = map[string]endpoint{
		"POST /v1/traces":     {http.MethodPost, "write", service.write(&traces)},
		"POST /v1/metrics":    {http.MethodPost, "write", service.write(&metrics)},
		"POST /v1/logs":       {http.MethodPost, "write", service.write(&logs)},
		"GET /v1/traces":      {http.MethodGet, "read", service.readTraces},
		"GET " + routeOfTrace: {http.MethodGet, "read", service.readTrace},
		"GET /v1/costs":       {http.MethodGet, "read", service.readCosts},
		"GET /health":         {http.MethodGet, "", service.health},
		"GET /health/live":    {http.MethodGet, "", service.live},
		"GET /health/ready":   {http.MethodGet, "", service.ready},
		"GET /metrics":        {http.MethodGet, "", service.metrics.handle},
	}
	return service
}

func (service *Service) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	began := time.Now()
	writer.Header().Set("X-Observatory-Version", version)
	writer.Header().Set("X-Observatory-Fleet", service.fleet)
	call := &Call{writer: writer, request: request, query: request.URL.Query()}
	route := service.route(call)
	defer func() {
		if fault := recover(); fault != nil {
			slog.Error("a handler failed", "route", route, "stack", string(debug.Stack()))
			call.fail(&Problem{status: http.StatusInternalServerError, detail: "the service failed"})
		}
		service.metrics.observe(request.Method, route, call.status, time.Since(began))
	}()
	if err := service.answer(call, route); err != nil {
		call.fail(service.problem(err, route))
	}
}

// route returns the pattern of a path, without redirects to another spelling of it.
func (service *Service) route(call *Call) string {
	path := call.request.URL.Path
	if rest, isBelow := strings.CutPrefix(path, "/v1/traces/"); isBelow {
		if !identifier.MatchString(rest) {
			return routeOfOther
		}
		call.traceID = rest
		return routeOfTrace
	}
	if len(service.methods(path)) > 0 {
		return path
	}
	return routeOfOther
}

func (service *Service) methods(route string) (methods []string) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if _, isKnown := service.endpoints[method+" "+route]; isKnown {
			methods = append(methods, method)
		}
	}
	return methods
}

func (service *Service) answer(call *Call, route string) error {
	if strings.HasPrefix(call.request.URL.Path, "/v1/") {
		release, err := service.admit(call)
		if err != nil {
			return err
		}
		defer release()
	}
	method := call.request.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	endpoint, isKnown := service.endpoints[method+" "+route]
	if !isKnown {
		if methods := service.methods(route); len(methods) > 0 {
			allow := strings.Join(methods, ", ")
			return &Problem{status: http.StatusMethodNotAllowed, detail: "the method must be " + allow, allow: allow}
		}
		return &Problem{status: http.StatusNotFound, detail: "there is no such path"}
	}
	if endpoint.scope != "" && !call.key.may(endpoint.scope) {
		return &Problem{status: http.StatusForbidden, detail: fmt.Sprintf("the key does not have the scope %q", endpoint.scope)}
	}
	return endpoint.handle(call)
}

// admit finds the key of a call, within its limits.
func (service *Service) admit(call *Call) (release func(), err error) {
	key, err := service.keys.find(call.request.Context(), call.request.Header.Get("Authorization"))
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, &Problem{
			status: http.StatusUnauthorized, detail: "send an API key in the header 'Authorization: Bearer KEY'",
		}
	}
	call.key = key
	if wait := service.keys.admit(key); wait > 0 {
		return nil, &Problem{status: http.StatusTooManyRequests, detail: "too many requests of this key", retryAfter: wait}
	}
	lease := service.requests.lease(key.id)
	if !lease.take(1) {
		return nil, busy(http.StatusTooManyRequests, "too many requests of this key are in progress")
	}
	return lease.release, nil
}

// problem returns the response to an error. Messages of the database may quote values, so they are in no response or log.
func (service *Service) problem(err error, route string) *Problem {
	var problem *Problem
	switch {
	case errors.As(err, &problem):
		return problem
	case isInvalidValue(err):
		return &Problem{status: http.StatusBadRequest, detail: "the database rejects a value: " + describe(err)}
	case isFaultOfService(err):
		slog.Error("a statement failed", "route", route, "detail", describe(err))
		return &Problem{status: http.StatusInternalServerError, detail: "the service failed"}
	}
	slog.Warn("a request failed", "route", route, "detail", describe(err))
	return &Problem{status: http.StatusServiceUnavailable, detail: describe(err), retryAfter: 1}
}

func (call *Call) fail(problem *Problem) {
	if problem.retryAfter > 0 {
		call.writer.Header().Set("Retry-After", strconv.Itoa(problem.retryAfter))
	}
	if problem.allow != "" {
		call.writer.Header().Set("Allow", problem.allow)
	}
	if problem.status == http.StatusUnauthorized {
		call.writer.Header().Set("WWW-Authenticate", "Bearer")
	}
	body, _ := json.Marshal(map[string]any{
		"type": "about:blank", "title": http.StatusText(problem.status), "status": problem.status, "detail": problem.detail,
	})
	_ = call.send(problem.status, "application/problem+json", body)
}

func (call *Call) respond(status int, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return call.send(status, "application/json", body)
}

// send writes a response; a client that does not read it loses its connection.
func (call *Call) send(status int, contentType string, body []byte) error {
	call.status = status
	_ = http.NewResponseController(call.writer).SetWriteDeadline(time.Now().Add(transferLimit(len(body))))
	call.writer.Header().Set("Content-Type", contentType)
	call.writer.Header().Set("Content-Length", strconv.Itoa(len(body)))
	call.writer.WriteHeader(status)
	_, _ = call.writer.Write(body)
	return nil
}

func mediaType(request *http.Request) string {
	parsed, _, err := mime.ParseMediaType(request.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return parsed
}

func (service *Service) live(call *Call) error {
	return call.respond(http.StatusOK, map[string]string{"status": "ok"})
}

func (service *Service) state() (status int, text string) {
	switch {
	case service.draining.Load():
		return http.StatusServiceUnavailable, "draining"
	case service.database.fault() != "":
		return http.StatusServiceUnavailable, "failed"
	}
	return http.StatusOK, "ok"
}

func (service *Service) ready(call *Call) error {
	status, text := service.state()
	return call.respond(status, map[string]string{"status": text})
}

func (service *Service) health(call *Call) error {
	status, text := service.state()
	database := map[string]string{"status": "ok", "detail": service.database.fault()}
	if database["detail"] != "" {
		database["status"] = "failed"
	}
	return call.respond(status, map[string]any{
		"status": text, "version": version, "fleet": service.fleet, "checks": map[string]any{"database": database},
	})
}
