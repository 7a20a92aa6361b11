package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	healthInterval  = time.Second
	healthTimeout   = 3 * time.Second
	failuresToFail  = 2
	requestTimeout  = 25 * time.Second // statements end after 30 s
	slotWait        = 5 * time.Second
	connectTimeout  = 5 * time.Second
	statementsKept  = 100 // pgBouncer keeps 200 for each connection
	schemaCondition = `SELECT coalesce(max(version) FILTER (WHERE statements_done = statements_total AND (version < 500) = ($2 < 500)), 0),
  coalesce(bool_or(version > $1 AND source ~ '(?n)^--[ \t]*phase[ \t]*:[ \t]*contract[ \t\r]*$'), false)
FROM observatory.schema_migrations`
)

// errBusy is returned when no connection of the pool became free in time.
var errBusy = errors.New("all connections of this instance are in use")

// Login is a user of the database and its password.
type Login struct{ user, password string }

// Database is the pool of connections, and whether the database may be used.
type Database struct {
	pool         *pgxpool.Pool
	passwordFile string
	slots        chan struct{} // one for each connection that requests may use

	mutex    sync.Mutex
	failures int
	detail   string // why the database may not be used; empty if it may
}

func readLogin(path string) (Login, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Login{}, err
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 2 || lines[0] == "" || lines[1] == "" {
		return Login{}, fmt.Errorf("%s: must have the user on the first line and the password on the second", path)
	}
	return Login{strings.TrimSuffix(lines[0], "\r"), strings.TrimSuffix(lines[1], "\r")}, nil
}

func openDatabase(settings Settings) (*Database, error) {
	config, err := pgxpool.ParseConfig(settings.DatabaseURL)
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(settings.PoolMax)
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.StatementCacheCapacity = statementsKept
	config.ConnConfig.RuntimeParams["application_name"] = release.Name + " " + settings.Fleet + " " + release.Version
	config.ConnConfig.RuntimeParams["TimeZone"] = "UTC"
	config.BeforeConnect = func(_ context.Context, connection *pgx.ConnConfig) error {
		login, err := readLogin(settings.PasswordFile)
		connection.User, connection.Password = login.user, login.password
		return err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, err
	}
	// One connection is left to the check of the health, so that a busy instance stays ready.
	slots := make(chan struct{}, max(1, settings.PoolMax-1))
	return &Database{
		pool: pool, passwordFile: settings.PasswordFile, slots: slots,
		failures: failuresToFail, detail: "the database was not reached yet",
	}, nil
}

// Close ends the connections, when no request uses them any more.
func (database *Database) Close() { database.pool.Close() }

// use calls work with a connection, when one is free.
func (database *Database) use(ctx context.Context, work func(context.Context, *pgxpool.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	wait := time.NewTimer(slotWait)
	defer wait.Stop()
	select {
	case database.slots <- struct{}{}:
		defer func() { <-database.slots }()
	case <-wait.C:
		return errBusy
	case <-ctx.Done():
		return ctx.Err()
	}
	return database.pool.AcquireFunc(ctx, func(connection *pgxpool.Conn) error { return work(ctx, connection) })
}

// fault returns why the database may not be used, or an empty text.
func (database *Database) fault() string {
	database.mutex.Lock()
	defer database.mutex.Unlock()
	if database.failures < failuresToFail {
		return ""
	}
	return database.detail
}

func (database *Database) watchHealth(ctx context.Context) {
	for everySecond := time.NewTicker(healthInterval); ctx.Err() == nil; {
		database.noteHealth(database.checkSchema(ctx))
		select {
		case <-everySecond.C:
		case <-ctx.Done():
		}
	}
}

func (database *Database) noteHealth(detail string) {
	database.mutex.Lock()
	defer database.mutex.Unlock()
	if detail == "" {
		database.failures = 0
	} else {
		database.failures++
	}
	if detail != "" && detail != database.detail {
		slog.Warn("the database may not be used", "detail", detail)
	}
	database.detail = detail
}

func (database *Database) checkSchema(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	var newest int
	var contracted bool
	err := database.pool.QueryRow(ctx, schemaCondition, release.SchemaMax, release.SchemaMin).Scan(&newest, &contracted)
	switch {
	case err != nil:
		return describe(err)
	case newest < release.SchemaMin:
		return fmt.Sprintf("the schema has version %d, this service needs %d or later", newest, release.SchemaMin)
	case contracted:
		return fmt.Sprintf("a contract migration after version %d was applied", release.SchemaMax)
	}
	return ""
}

// watchLogin replaces the connections when the file has another login.
func (database *Database) watchLogin(ctx context.Context) {
	current, _ := readLogin(database.passwordFile)
	for everySecond := time.NewTicker(time.Second); ; {
		select {
		case <-everySecond.C:
		case <-ctx.Done():
			return
		}
		if login, err := readLogin(database.passwordFile); err == nil && login != current {
			current = login
			database.pool.Reset()
			slog.Info("the login of the database changed")
		}
	}
}

// describe names an error of the database without its message, which may quote values.
func describe(err error) string {
	var rejected *pgconn.PgError
	var unreachable *pgconn.ConnectError
	switch {
	case errors.As(err, &rejected):
		return "the database answered with SQLSTATE " + rejected.Code
	case errors.Is(err, errBusy):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "the database did not answer in time"
	case errors.As(err, &unreachable):
		return "the database is not reachable"
	}
	return "the connection to the database failed"
}

// isInvalidValue is true if the database rejected a value: of classes 22 and 23, or too deep or large (54).
func isInvalidValue(err error) bool {
	var rejected *pgconn.PgError
	if !errors.As(err, &rejected) || len(rejected.Code) != 5 {
		return false
	}
	class := rejected.Code[:2]
	return class == "22" || class == "23" || class == "54"
}

// isFaultOfService is true if the statement itself is wrong, which another attempt does not mend.
func isFaultOfService(err error) bool {
	var rejected *pgconn.PgError
	return errors.As(err, &rejected) && strings.HasPrefix(rejected.Code, "42") && rejected.Code != "42501"
}
