package main

import (
	"context"
	"net"
	"os"
	"time"
)

// The period of the watchdog is 30 s, and the page requires two notifications in it.
const watchdogInterval = 10 * time.Second

// notifySystemd sends a state to systemd, if the service is one of its units.
func notifySystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	connection, err := net.Dial("unixgram", path) // Go spells an abstract socket with @, like systemd
	if err != nil {
		return
	}
	defer func() { _ = connection.Close() }()
	_, _ = connection.Write([]byte(state))
}

func watchdog(ctx context.Context) {
	if os.Getenv("WATCHDOG_USEC") == "" {
		return
	}
	for interval := time.NewTicker(watchdogInterval); ; {
		select {
		case <-interval.C:
			notifySystemd("WATCHDOG=1")
		case <-ctx.Done():
			return
		}
	}
}
