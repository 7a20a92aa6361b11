package main

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Settings are the variables of the page that this service uses. It has no cache, so it ignores those of the Valkey.
type Settings struct {
	Listen       string
	Fleet        string
	DatabaseURL  string
	PasswordFile string
	PoolMax      int
	LameDuck     time.Duration
	Drain        time.Duration
}

// readSettings returns the settings, and one text for each variable that is missing or invalid.
func readSettings(variable func(string) string) (Settings, []string) {
	var faults []string
	value := func(name string, valid func(string) error) string {
		text := variable(name)
		if text == "" {
			faults = append(faults, name+": is required but not set")
		} else if err := valid(text); err != nil {
			faults = append(faults, fmt.Sprintf("%s: %s", name, err))
		}
		return text
	}
	number := func(name string, lowest int) int {
		var parsed int
		value(name, func(text string) (err error) {
			if parsed, err = strconv.Atoi(text); err != nil || parsed < lowest {
				return fmt.Errorf("must be an integer of %d or more", lowest)
			}
			return nil
		})
		return parsed
	}
	return Settings{
		Listen:       value("STORAGE_LISTEN", validAddress),
		Fleet:        value("STORAGE_FLEET", validFleet),
		DatabaseURL:  value("STORAGE_DATABASE_URL", validURL),
		PasswordFile: value("STORAGE_DATABASE_PASSWORD_FILE", validPasswordFile),
		PoolMax:      number("STORAGE_POOL_MAX", 1),
		LameDuck:     time.Duration(number("STORAGE_LAME_DUCK_SECONDS", 0)) * time.Second,
		Drain:        time.Duration(number("STORAGE_DRAIN_SECONDS", 0)) * time.Second,
	}, faults
}

func validAddress(text string) error {
	_, err := net.ResolveTCPAddr("tcp", text)
	return err
}

func validFleet(text string) error {
	if text != "blue" && text != "green" {
		return fmt.Errorf("must be 'blue' or 'green'")
	}
	return nil
}

func validURL(text string) error {
	_, err := pgx.ParseConfig(text) // its errors redact a password
	return err
}

func validPasswordFile(path string) error {
	_, err := readLogin(path)
	return err
}
