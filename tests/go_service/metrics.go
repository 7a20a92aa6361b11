package main

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are those of the page. The buffer is the writes whose body is complete, and its capacity their limit.
type Metrics struct {
	endpoint      http.Handler
	requests      *prometheus.CounterVec
	durations     *prometheus.HistogramVec
	writes        *prometheus.CounterVec
	pendingWrites prometheus.Gauge
}

func newMetrics(settings Settings, database *Database) *Metrics {
	registry := prometheus.NewRegistry()
	metrics := &Metrics{
		endpoint: promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "storage_http_requests_total", Help: "Requests by method, route and status.",
		}, []string{"method", "route", "status"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "storage_http_request_duration_seconds", Help: "Time until a response is written.",
		}, []string{"route"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "storage_writes_total", Help: "Writes by their result.",
		}, []string{"status"}),
		pendingWrites: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "storage_buffer_size", Help: "Writes that wait for their commit.",
		}),
	}
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value)
	}
	registry.MustRegister(
		metrics.requests, metrics.durations, metrics.writes, metrics.pendingWrites,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("storage_service_info", "The version of this instance.",
			prometheus.Labels{"version": version, "fleet": settings.Fleet}, func() float64 { return 1 }),
		gauge("storage_buffer_capacity", "Most writes in progress.", nil, func() float64 { return mostRequests }),
		gauge("storage_pool_in_use", "Connections of the database in use.", nil,
			func() float64 { return float64(database.pool.Stat().AcquiredConns()) }),
		gauge("storage_pool_capacity", "Most connections of the database.", nil,
			func() float64 { return float64(settings.PoolMax) }),
	)
	// Samples from the start: a counter that appears with its first event hides that event.
	for _, status := range []string{"success", "error"} {
		metrics.writes.WithLabelValues(status)
	}
	metrics.requests.WithLabelValues(http.MethodPost, "/v1/traces", "201")
	metrics.durations.WithLabelValues("/v1/traces")
	return metrics
}

func (metrics *Metrics) handle(call *Call) error {
	call.status = http.StatusOK
	metrics.endpoint.ServeHTTP(call.writer, call.request)
	return nil
}

func (metrics *Metrics) observe(method, route string, status int, duration time.Duration) {
	known := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
	if !slices.Contains(known, method) {
		method = "other"
	}
	metrics.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	metrics.durations.WithLabelValues(route).Observe(duration.Seconds())
}
