"""Delivery: traffic weights, versions, and what the gates of a deployment judge."""

from __future__ import annotations

from monitoring.dashboards.expressions import API_REQUESTS, SERVER_ERRORS, rate, share
from monitoring.dashboards.model import Annotation, Dashboard, Panel, Query, Section, Thresholds, Unbounded
from monitoring.dashboards.shared import DOWN

SHIFT = Unbounded(reason="A deployment changes the shares on purpose.")
FORWARDED_REQUESTS = 'balancer_requests_total{stack="$stack",fleet=~"blue|green"}'
FAILED_REQUESTS = (
    'balancer_requests_total{stack="$stack",fleet=~"blue|green",outcome!="client_abort",status!~"[1-4].."}'
)

TRAFFIC = Section(
    title="Traffic",
    panels=(
        Panel(
            title="Traffic weights",
            description="Share of the requests that the balancer sends to each fleet, as it is configured now.",
            unit="percent",
            stacked=True,
            platforms=("local",),
            queries=(Query(expression='storage_fleet_weight{stack="$stack"}', legend="{{fleet}}"),),
            thresholds=SHIFT,
        ),
        Panel(
            title="Share of the requests",
            description="Share of the requests to the API that the instances of each fleet answered.",
            unit="ratio",
            stacked=True,
            queries=(
                Query(
                    expression=(
                        f"{rate(API_REQUESTS, by='stack, fleet')} / on (stack) group_left () "
                        f"({rate(API_REQUESTS, by='stack')} > 0)"
                    ),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=SHIFT,
            empty="There were no requests in this range.",
        ),
        Panel(
            title="Versions",
            description="Version of each instance that runs.",
            unit="count",
            kind="table",
            columns=("fleet", "instance", "version"),
            queries=(
                Query(
                    expression='storage_service_info{stack="$stack"}',
                    legend="{{fleet}} {{instance}} {{version}}",
                    instant=True,
                ),
            ),
            thresholds=Unbounded(reason="Two versions are usual during a deployment, and so is an idle old fleet."),
        ),
    ),
)

GATES = Section(
    title="Gates",
    panels=(
        Panel(
            title="Requests that failed",
            description=(
                "Share of the public requests that got a status of 500 or above, or no response. Gates compare the "
                "fleets by it."
            ),
            unit="ratio",
            platforms=("local",),
            queries=(
                Query(
                    expression=share(FAILED_REQUESTS, FORWARDED_REQUESTS, by="fleet"),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Thresholds(warning=0.001, critical=0.01),
            empty="The balancer forwarded no request in this range.",
        ),
        Panel(
            title="Server errors by fleet",
            description=(
                "Share of the requests to the API that got a status of 500 or above. Gates compare the fleets by it."
            ),
            unit="ratio",
            platforms=("aws",),
            queries=(
                Query(
                    expression=share(SERVER_ERRORS, API_REQUESTS, by="fleet"),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Thresholds(warning=0.001, critical=0.01),
            empty="There were no requests in this range.",
        ),
        Panel(
            title="Response time at the balancer",
            description="99th percentile of the time from a complete request to its response, by fleet.",
            unit="seconds",
            platforms=("local",),
            queries=(
                Query(
                    expression=(
                        "histogram_quantile(0.99, sum by (fleet, le) "
                        '(rate(balancer_request_seconds_bucket{stack="$stack"}[5m]))) >= 0'
                    ),
                    legend="{{fleet}} p99",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=5),
            empty="The balancer forwarded no request in the last five minutes.",
        ),
        Panel(
            title="Response time of the instances",
            description="99th percentile of the duration of requests in the instances, by fleet.",
            unit="seconds",
            queries=(
                Query(
                    expression=(
                        "histogram_quantile(0.99, sum by (fleet, le) "
                        '(rate(storage_http_request_duration_seconds_bucket{stack="$stack",route=~"/v1/.+"}[5m]))) >= 0'
                    ),
                    legend="{{fleet}} p99",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=5),
            empty="There were no requests in the last five minutes.",
        ),
        Panel(
            title="Saturation",
            description=(
                "Fullest of the connection pools and write buffers of each fleet. Gates stop a shift to a full fleet."
            ),
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        'max by (fleet) (storage_pool_in_use{stack="$stack"} / '
                        'storage_pool_capacity{stack="$stack"} or storage_buffer_size{stack="$stack"} / '
                        'on (fleet, instance) group_left storage_buffer_capacity{stack="$stack"})'
                    ),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Thresholds(warning=0.8, critical=1),
        ),
        Panel(
            title="Failed health checks",
            description="Health checks of the balancer that failed, by instance.",
            unit="per second",
            platforms=("local",),
            queries=(
                Query(
                    expression=(
                        "sum by (fleet, server) "
                        '(rate(haproxy_server_check_failures_total{stack="$stack",fleet=~".+"}[$window]))'
                    ),
                    legend="{{server}}",
                ),
            ),
            thresholds=Thresholds(warning=0.01, critical=0.1),
            alerts=("StorageInstanceDown",),
        ),
        Panel(
            title="Memory by fleet",
            description="Mean resident memory of the instances of each fleet. Gates compare the fleets by it.",
            unit="bytes",
            queries=(
                Query(
                    expression='avg by (fleet) (process_resident_memory_bytes{stack="$stack",job="storage"})',
                    legend="{{fleet}}",
                ),
            ),
            thresholds=Thresholds(warning=400_000_000, critical=500_000_000),
        ),
        Panel(
            title="Alerts that roll back",
            description="Firing alerts that roll back a running deployment of their fleet.",
            unit="count",
            kind="table",
            columns=("alertname", "fleet", "severity"),
            queries=(
                Query(
                    expression='ALERTS{stack="$stack",alertstate="firing",rollback="true"}',
                    legend="{{alertname}} {{fleet}}",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageServiceDown", "StorageInstanceDown"),
            empty="No alert that rolls back fires.",
        ),
    ),
)

INSTANCES = Section(
    title="Instances",
    panels=(
        Panel(
            title="Ready instances",
            description="Instances of each fleet that pass the balancer's health checks.",
            unit="count",
            width=12,
            platforms=("local",),
            queries=(
                Query(
                    expression=(
                        'sum by (fleet) (haproxy_server_status{stack="$stack",state="UP",fleet=~".+",server=~".+"})'
                    ),
                    legend="{{fleet}}",
                ),
            ),
            thresholds=DOWN,
            alerts=("StorageServiceDown", "StorageInstanceDown"),
        ),
        Panel(
            title="Instances that are scraped",
            description="Instances of each fleet whose metrics Prometheus can read.",
            unit="count",
            width=12,
            queries=(Query(expression='sum by (fleet) (up{stack="$stack",job="storage"})', legend="{{fleet}}"),),
            thresholds=DOWN,
            alerts=("StorageServiceDown", "StorageInstanceDown"),
        ),
    ),
)

DELIVERY = Dashboard(
    name="delivery",
    title="Storage: delivery",
    description="Traffic weights and versions of the fleets, and the values that the gates of a deployment judge.",
    sections=(TRAFFIC, GATES, INSTANCES),
    annotations=(
        Annotation(
            name="Versions",
            expression=(
                'group by (fleet, version) (storage_service_info{stack="$stack"}) unless '
                'group by (fleet, version) (storage_service_info{stack="$stack"} offset 1m)'
            ),
            text="{{fleet}} runs {{version}}",
        ),
        Annotation(
            name="Traffic weights",
            expression='delta(storage_fleet_weight{stack="$stack"}[30s]) != 0',
            text="The weight of {{fleet}} changes",
            platforms=("local",),
        ),
        Annotation(
            name="Gates",
            expression='ALERTS{stack="$stack",alertstate="firing",rollback="true"}',
            text="{{alertname}} fires for {{fleet}}",
        ),
    ),
)
