package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/time/rate"
)

const (
	keyLifetime   = 5 * time.Second
	keysKept      = 10_000
	longestKey    = 512
	useInterval   = time.Minute
	limiterExpiry = 2 * time.Minute // after it an unused limiter is full again

	findKey = `SELECT id::text, coalesce(scopes, '{}') AS scopes, rate_limit_rpm FROM api_keys
WHERE key_hash = $1 AND is_active AND (expires_at IS NULL OR expires_at > now())`
	noteUse = `UPDATE api_keys SET last_used_at = used.at
FROM unnest($1::text[], $2::timestamptz[]) AS used(id, at)
WHERE api_keys.id::text = used.id AND (last_used_at IS NULL OR last_used_at < used.at)`
)

// Key is one API key of the database.
type Key struct {
	id     string
	scopes []string
	rpm    *int
}

func (key *Key) may(scope string) bool { return slices.Contains(key.scopes, scope) }

type foundKey struct {
	key     *Key // nil if the database has no such key
	expires time.Time
}

type keyLimiter struct {
	limiter *rate.Limiter
	rpm     int
	used    time.Time
}

// Keys finds keys, limits their requests and notes their use.
type Keys struct {
	database *Database
	mutex    sync.Mutex
	found    map[string]foundKey
	limiters map[string]*keyLimiter
	used     map[string]time.Time
}

func newKeys(database *Database) *Keys {
	return &Keys{
		database: database, found: map[string]foundKey{}, limiters: map[string]*keyLimiter{}, used: map[string]time.Time{},
	}
}

// find returns the key of an Authorization header, or nil if there is none.
func (keys *Keys) find(ctx context.Context, authorization string) (*Key, error) {
	scheme, secret, _ := strings.Cut(authorization, " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "bearer") || secret == "" || len(secret) > longestKey {
		return nil, nil
	}
	digest := sha256.Sum256([]byte(secret))
	hash := hex.EncodeToString(digest[:])
	keys.mutex.Lock()
	found, isKnown := keys.found[hash]
	keys.mutex.Unlock()
	if isKnown && time.Now().Before(found.expires) {
		return found.key, nil
	}
	expires := time.Now().Add(keyLifetime) // from before the query, so that a revoked key ends in time
	key, err := keys.read(ctx, hash)
	if err == nil {
		keys.keep(hash, foundKey{key, expires})
	}
	return key, err
}

func (keys *Keys) read(ctx context.Context, hash string) (*Key, error) {
	var key Key
	err := keys.database.use(ctx, func(ctx context.Context, connection *pgxpool.Conn) error {
		return connection.QueryRow(ctx, findKey, hash).Scan(&key.id, &key.scopes, &key.rpm)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &key, nil
}

func (keys *Keys) keep(hash string, found foundKey) {
	keys.mutex.Lock()
	defer keys.mutex.Unlock()
	if len(keys.found) >= keysKept {
		clear(keys.found)
	}
	keys.found[hash] = found
}

// admit notes the use of a key, and returns the seconds to wait if it has used the requests of its minute.
func (keys *Keys) admit(key *Key) (wait int) {
	now := time.Now()
	keys.mutex.Lock()
	defer keys.mutex.Unlock()
	keys.used[key.id] = now
	if key.rpm == nil {
		return 0
	}
	limited := keys.limiters[key.id]
	if limited == nil || limited.rpm != *key.rpm {
		limited = &keyLimiter{limiter: rate.NewLimiter(rate.Limit(float64(*key.rpm)/60), *key.rpm), rpm: *key.rpm}
		keys.limiters[key.id] = limited
	}
	limited.used = now
	reservation := limited.limiter.ReserveN(now, 1)
	if !reservation.OK() {
		return int(useInterval.Seconds())
	}
	delay := reservation.DelayFrom(now)
	if delay > 0 {
		reservation.CancelAt(now)
	}
	return int(math.Ceil(delay.Seconds()))
}

func (keys *Keys) recordUse(ctx context.Context) {
	for everyMinute := time.NewTicker(useInterval); ; {
		select {
		case <-everyMinute.C:
			keys.storeUse(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// storeUse writes the times of use, and forgets what is not needed any more.
func (keys *Keys) storeUse(ctx context.Context) {
	ids, times := keys.takeUse()
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if _, err := keys.database.pool.Exec(ctx, noteUse, ids, times); err != nil {
		slog.Warn("last_used_at was not written", "detail", describe(err))
	}
}

func (keys *Keys) takeUse() (ids []string, times []time.Time) {
	keys.mutex.Lock()
	defer keys.mutex.Unlock()
	for id, at := range keys.used {
		ids, times = append(ids, id), append(times, at)
	}
	clear(keys.used)
	for id, limited := range keys.limiters {
		if time.Since(limited.used) > limiterExpiry {
			delete(keys.limiters, id)
		}
	}
	return ids, times
}
