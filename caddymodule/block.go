package caddymodule

import (
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// setting is a word in a block, and what reads its values into a T.
type setting[T any] struct {
	name  string
	parse func(T, *caddyfile.Dispenser) error
}

// nameOf is the word that begins a setting whose path, as errors tell it, is such as
// `limits: tunnels`.
func nameOf(path string) string { return path[strings.LastIndexByte(path, ' ')+1:] }

// The settings below put what they read where field points.

func textSetting[T any](path string, field func(T) *string, what string) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) (err error) {
		*field(to), err = oneValue(d, path, what)
		return err
	}}
}

func textsSetting[T any](path string, field func(T) *[]string, what string) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) (err error) {
		*field(to), err = someValues(d, path, what)
		return err
	}}
}

func wordSetting[T any](path string, field func(T) *string, words ...string) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) (err error) {
		*field(to), err = wordValue(d, path, words...)
		return err
	}}
}

func flagSetting[T any](path string, field func(T) *bool) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) error {
		*field(to) = true
		return noValue(d, path)
	}}
}

func durationSetting[T any](path string, field func(T) *caddy.Duration) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) error { return durationValue(d, path, field(to)) }}
}

func countSetting[T any](path string, field func(T) *int) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) error { return countValue(d, path, field(to)) }}
}

func sizeSetting[T any](path string, field func(T) *int64) setting[T] {
	return setting[T]{nameOf(path), func(to T, d *caddyfile.Dispenser) error { return sizeValue(d, path, field(to)) }}
}

// parseBlock reads a block of settings. None but those in repeatable may be given
// twice. A block that is not there is an empty one.
func parseBlock[T any](d *caddyfile.Dispenser, block string, to T, settings []setting[T], repeatable ...string) error {
	given := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		i := slices.IndexFunc(settings, func(s setting[T]) bool { return s.name == name })
		if i < 0 {
			known := make([]string, len(settings))
			for i, s := range settings {
				known[i] = s.name
			}
			return d.Errf("%s: unknown setting %q: it takes %s", block, name, list(known))
		}
		if given[name] && !slices.Contains(repeatable, name) {
			return repeated(d, block+": "+name)
		}
		given[name] = true
		if err := settings[i].parse(to, d); err != nil {
			return err
		}
	}
	return nil
}

func repeated(d *caddyfile.Dispenser, setting string) error {
	return d.Errf("%s: is given more than once", setting)
}

// list writes words for an error.
func list(words []string) string {
	switch n := len(words); n {
	case 0:
		return "none"
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
}

func oneValue(d *caddyfile.Dispenser, setting, what string) (string, error) {
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return "", d.Errf("%s: takes %s, given %d values", setting, what, len(args))
	}
	return args[0], nil
}

func someValues(d *caddyfile.Dispenser, setting, what string) ([]string, error) {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return nil, d.Errf("%s: takes %s, given none", setting, what)
	}
	return args, nil
}

func noValue(d *caddyfile.Dispenser, setting string) error {
	if d.NextArg() {
		return d.Errf("%s: takes no value, given %q", setting, d.Val())
	}
	return nil
}

func wordValue(d *caddyfile.Dispenser, setting string, words ...string) (string, error) {
	value, err := oneValue(d, setting, strings.Join(words, " or "))
	if err != nil {
		return "", err
	}
	if !slices.Contains(words, value) {
		return "", d.Errf("%s: %q is not %s", setting, value, strings.Join(words, " or "))
	}
	return value, nil
}

func durationValue(d *caddyfile.Dispenser, setting string, to *caddy.Duration) error {
	value, err := oneValue(d, setting, "a duration such as 30s")
	if err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(value)
	if err != nil || duration < 0 {
		return d.Errf("%s: %q is not a duration such as 500ms, 30s, 12h or 30d", setting, value)
	}
	if duration == 0 && setting != "wait" {
		return d.Errf("%s: %q: must be more than zero", setting, value)
	}
	*to = caddy.Duration(duration)
	return nil
}

func countValue(d *caddyfile.Dispenser, setting string, to *int) error {
	value, err := oneValue(d, setting, "a number")
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 {
		return d.Errf("%s: %q is not a number from 1 on", setting, value)
	}
	*to = int(n)
	return nil
}

func sizeValue(d *caddyfile.Dispenser, setting string, to *int64) error {
	value, err := oneValue(d, setting, "a size such as 2MiB")
	if err != nil {
		return err
	}
	n, err := humanize.ParseBytes(value)
	if err != nil || n < 1 || n > 1<<40 {
		return d.Errf("%s: %q is not a size such as 512KiB or 2MiB, up to 1TiB", setting, value)
	}
	*to = int64(n)
	return nil
}
