package caddymodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/caddymodule/webhook"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// Webhook is a URL that is told by signed requests what happens to devices. It
// keeps what it has to tell over reloads, as long as the URL is the same.
type Webhook struct {
	// Where requests go: https, or http to this machine. Required.
	URL string `json:"url,omitempty"`

	// What requests are signed with: one secret of at least 16 characters, or two while
	// the receiver changes from one to the other. Required.
	Secrets []string `json:"secrets,omitempty"`

	// What is told: `online`, `offline`, `cloned`, `flapping`, `limited`, `drained`.
	// Default: all.
	Events []string `json:"events,omitempty"`

	// How long a device must be away before it is told of; its return is told only
	// then. Default: each time, at once.
	OfflineAfter caddy.Duration `json:"offline_after,omitempty"`

	// How many events a request has at most, 1 to 1000, and how long the first of
	// them waits for others. Default: 100 and 1s.
	Batch     int            `json:"batch,omitempty"`
	BatchWait caddy.Duration `json:"batch_wait,omitempty"`

	// How often, and within what time, a device must leave to be told of as
	// flapping; then nothing else is told of it until it has been steady for
	// that long. 2 to 100, or -1 for never. Default: 6 times in 10m.
	Flaps      int            `json:"flaps,omitempty"`
	FlapWindow caddy.Duration `json:"flap_window,omitempty"`

	// How long an event is kept that the receiver does not take. Default: 1h.
	Retry caddy.Duration `json:"retry,omitempty"`

	// If true, the URL may be http to elsewhere than this machine. Default: false.
	AllowPlaintext bool `json:"allow_plaintext,omitempty"`
}

// expand replaces placeholders.
func (w *Webhook) expand(repl *caddy.Replacer) error {
	var err error
	if w.URL, err = repl.ReplaceOrErr(w.URL, true, true); err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	for i, secret := range w.Secrets {
		if w.Secrets[i], err = repl.ReplaceOrErr(secret, true, true); err != nil {
			return fmt.Errorf("webhook: secret: %w", err)
		}
	}
	return nil
}

func (w *Webhook) validate() error {
	u, err := url.Parse(w.URL)
	place := webhook.Place(w.URL)
	switch {
	case err != nil, u.Host == "", u.Scheme != "https" && u.Scheme != "http":
		return errors.New("webhook: takes a URL such as https://hooks.example.com/iottunnel")
	case u.Scheme == "http" && !w.AllowPlaintext && !isLoopback(u.Hostname()):
		return fmt.Errorf("webhook: %s is not encrypted: take https, or write `allow_plaintext` into its block", place)
	case len(w.Secrets) == 0:
		return fmt.Errorf("webhook %s: secret is missing: what requests are signed with, such as {env.WEBHOOK_SECRET}", place)
	case len(w.Secrets) > 2:
		return fmt.Errorf("webhook %s: secret: takes one, or two while the receiver changes, given %d", place, len(w.Secrets))
	case w.Batch < 0 || w.Batch > 1000:
		return fmt.Errorf("webhook %s: batch: %d is not between 1 and 1000", place, w.Batch)
	case w.Flaps < -1 || w.Flaps == 1 || w.Flaps > 100:
		return fmt.Errorf("webhook %s: flapping: %d is not between 2 and 100", place, w.Flaps)
	case w.OfflineAfter < 0 || w.BatchWait < 0 || w.FlapWindow < 0 || w.Retry < 0:
		return fmt.Errorf("webhook %s: a duration is negative", place)
	}
	for _, secret := range w.Secrets {
		if len(secret) < minSecret {
			return fmt.Errorf("webhook %s: secret: has %d characters, at least %d are needed: `openssl rand -hex 32` makes one", place, len(secret), minSecret)
		}
	}
	for _, event := range w.Events {
		if !slices.Contains(webhook.Events, event) {
			return fmt.Errorf("webhook %s: events: %q is not one of %s", place, event, list(webhook.Events))
		}
	}
	return nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// settings are w with its defaults.
func (w *Webhook) settings() webhook.Settings {
	s := webhook.Settings{
		URL: w.URL, Secrets: w.Secrets, Events: w.Events,
		OfflineAfter: time.Duration(w.OfflineAfter),
		Batch:        cmp.Or(w.Batch, 100),
		BatchWait:    cmp.Or(time.Duration(w.BatchWait), time.Second),
		Flaps:        max(0, cmp.Or(w.Flaps, 6)),
		FlapWindow:   cmp.Or(time.Duration(w.FlapWindow), 10*time.Minute),
		Retry:        cmp.Or(time.Duration(w.Retry), time.Hour),
	}
	if len(s.Events) == 0 {
		s.Events = webhook.Events
	}
	return s
}

// expandWebhooks replaces placeholders in all webhooks.
func (a *App) expandWebhooks(repl *caddy.Replacer) error {
	for _, w := range a.Webhooks {
		if err := w.expand(repl); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) validateWebhooks() error {
	seen := make(map[string]bool)
	for _, w := range a.Webhooks {
		if err := w.validate(); err != nil {
			return err
		}
		if seen[w.URL] {
			return errors.New("webhook: a URL is given more than once")
		}
		seen[w.URL] = true
	}
	return nil
}

func (a *App) webhooks() []webhook.Settings {
	all := make([]webhook.Settings, len(a.Webhooks))
	for i, w := range a.Webhooks {
		all[i] = w.settings()
	}
	return all
}

var webhookSettings = []setting[*Webhook]{
	textsSetting("webhook: secret", func(w *Webhook) *[]string { return &w.Secrets }, "a secret, or two"),
	textsSetting("webhook: events", func(w *Webhook) *[]string { return &w.Events }, "some of "+strings.Join(webhook.Events, " ")),
	durationSetting("webhook: offline_after", func(w *Webhook) *caddy.Duration { return &w.OfflineAfter }),
	{"batch", (*Webhook).parseBatch},
	{"flapping", (*Webhook).parseFlapping},
	durationSetting("webhook: retry", func(w *Webhook) *caddy.Duration { return &w.Retry }),
	flagSetting("webhook: allow_plaintext", func(w *Webhook) *bool { return &w.AllowPlaintext }),
}

func (w *Webhook) parseBatch(d *caddyfile.Dispenser) (err error) {
	w.Batch, w.BatchWait, err = countWithin(d, "batch", "a number of events and how long they may wait, as in `batch 100 1s`", d.RemainingArgs())
	return err
}

func (w *Webhook) parseFlapping(d *caddyfile.Dispenser) (err error) {
	args := d.RemainingArgs()
	if len(args) == 1 && args[0] == "off" {
		w.Flaps = -1
		return nil
	}
	w.Flaps, w.FlapWindow, err = countWithin(d, "flapping", "off, or how often and within what time, as in `flapping 6 10m`", args)
	return err
}

// countWithin reads a number and a duration.
func countWithin(d *caddyfile.Dispenser, setting, what string, args []string) (int, caddy.Duration, error) {
	if len(args) != 2 {
		return 0, 0, d.Errf("webhook: %s: takes %s, given %d values", setting, what, len(args))
	}
	n, err := strconv.ParseInt(args[0], 10, 32)
	within, errWithin := caddy.ParseDuration(args[1])
	if err != nil || n < 1 || errWithin != nil || within <= 0 {
		return 0, 0, d.Errf("webhook: %s: takes %s, given %q", setting, what, strings.Join(args, " "))
	}
	return int(n), caddy.Duration(within), nil
}

// parseWebhook reads `webhook URL { … }`.
func (a *App) parseWebhook(d *caddyfile.Dispenser) (err error) {
	w := new(Webhook)
	if w.URL, err = oneValue(d, "webhook", "a URL"); err != nil {
		return err
	}
	a.Webhooks = append(a.Webhooks, w)
	return parseBlock(d, "webhook", w, webhookSettings)
}

// hooksOf makes the webhooks of an edge, which has none yet. They may be closed at any
// time, but ask only once there is a hub.
func (e *edge) hooksOf(reg registry.Registry) *webhook.Hooks {
	return webhook.New(webhook.Config{
		Node:     e.key.node,
		Fleet:    fleet{reg, e.key.node},
		Hostname: func(label string) string { return e.hub.Hostname(label) },
		Log:      e.log,
		Count:    func(result string, n int) { metrics.webhookEvents.WithLabelValues(result).Add(float64(n)) },
	})
}

// fleet is what the registry knows of all devices.
type fleet struct {
	reg  registry.Registry
	node string
}

// Connected implements webhook.Fleet.
func (f fleet) Connected(ctx context.Context, device string) (bool, error) {
	rec, err := f.reg.ByDevice(ctx, device)
	if errors.Is(err, registry.ErrUnknown) {
		return false, nil
	}
	return rec.Online.Tunnel != "", err
}

// LastAbsence implements webhook.Fleet. It goes by the device's history, in which the
// arrival in question may be already.
func (f fleet) LastAbsence(ctx context.Context, device string) (at time.Time, ok, first bool, err error) {
	journal, err := f.reg.Journal(ctx, device)
	if err != nil {
		return time.Time{}, false, false, err
	}
	events := slices.DeleteFunc(journal.Events, func(e registry.Event) bool {
		return e.Kind != webhook.Online && e.Kind != webhook.Offline
	})
	if len(events) > 0 && events[0].Kind == webhook.Online && events[0].Node == f.node {
		events = events[1:]
	}
	switch {
	case len(events) == 0:
		return time.Time{}, false, true, nil
	case events[0].Kind == webhook.Online:
		return time.Time{}, false, false, nil
	}
	return events[0].At, true, false, nil
}

// Interface guards
var _ webhook.Fleet = fleet{}
