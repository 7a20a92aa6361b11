// The program bin/storage-service: a second storage service, written from docs/service-contract.md.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// Release has the fields of the manifest that --check prints.
type Release struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	SchemaMin int    `json:"schema_min"`
	SchemaMax int    `json:"schema_max"`
}

var (
	version = "v0.0.0-dev" // set by the linker
	//go:embed manifest.json
	manifest []byte // the manifest's fields that do not depend on the build
	release  = readRelease()
)

func readRelease() Release {
	var release Release
	if err := json.Unmarshal(manifest, &release); err != nil {
		panic(err)
	}
	release.Version = version
	return release
}

func main() {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	settings, faults := readSettings(os.Getenv)
	for _, fault := range faults {
		fmt.Fprintf(os.Stderr, "%s: %s\n", release.Name, fault)
	}
	if len(faults) > 0 {
		os.Exit(exitUsage)
	}
	switch {
	case len(os.Args) == 1:
		if err := run(settings); err != nil {
			slog.Error("the service ended", "error", err.Error())
			os.Exit(exitFailed)
		}
	case len(os.Args) == 2 && os.Args[1] == "--check":
		_ = json.NewEncoder(os.Stdout).Encode(release)
	default:
		fmt.Fprintf(os.Stderr, "usage: %s [--check]\n", os.Args[0])
		os.Exit(exitUsage)
	}
}

// run serves until SIGTERM, and then through the lame duck and the drain.
func run(settings Settings) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	background, stop := context.WithCancel(context.Background())
	defer stop()

	database, err := openDatabase(settings)
	if err != nil {
		return err
	}
	service := newService(settings, database)
	listener, err := net.Listen("tcp", settings.Listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:                      service,
		ReadHeaderTimeout:            20 * time.Second,
		IdleTimeout:                  75 * time.Second,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
	go database.watchHealth(background)
	go database.watchLogin(background)
	go service.keys.recordUse(background)
	go watchdog(background)

	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	notifySystemd("READY=1")
	slog.Info("the service listens", "address", settings.Listen, "version", version, "fleet", settings.Fleet)
	select {
	case err := <-failed:
		return err
	case <-signals:
	}
	notifySystemd("STOPPING=1")
	service.draining.Store(true)
	slog.Info("the service drains", "lame_duck", settings.LameDuck.String(), "drain", settings.Drain.String())
	time.Sleep(settings.LameDuck)
	drain, cancel := context.WithTimeout(context.Background(), settings.Drain)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		slog.Warn("requests are in flight at the end of the drain")
		return nil // their connections end with the process
	}
	service.keys.storeUse(context.Background())
	database.Close()
	return nil
}
