package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// defaultGrantTime is how long a grant lasts that names no time.
const defaultGrantTime = time.Hour

// close notes that a site lets in visitors with links alone.
func (a *App) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shared = true
}

// closed reports whether a site of this configuration does.
func (a *App) closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shared
}

// grantView is a grant; Token and URL are shown once.
type grantView struct {
	ID      string             `json:"id"`
	Kind    registry.GrantKind `json:"kind"`
	Device  string             `json:"device"`
	Port    uint16             `json:"port"`
	By      string             `json:"by,omitempty"`
	Created time.Time          `json:"created"`
	Until   time.Time          `json:"until"`
	Token   string             `json:"token,omitempty"`
	URL     string             `json:"url,omitempty"` // of a link
}

func viewGrant(g registry.Grant) grantView {
	return grantView{ID: g.ID, Kind: g.Kind, Device: g.Device, Port: g.Port, By: g.By, Created: *moment(g.Created), Until: *moment(g.Until)}
}

// adminNewGrant makes a grant as {"device":"cam-17","port":22,"for":"1h"} says; with
// "kind":"share" a link.
func adminNewGrant(ctx context.Context, e *edge, a *App, r *http.Request) (any, error) {
	q := struct {
		Device string             `json:"device"`
		Port   int                `json:"port"`
		For    string             `json:"for"`
		Kind   registry.GrantKind `json:"kind"`
		By     string             `json:"by"`
	}{Kind: registry.GrantConnect}
	if err := decodeBody(r, &q); err != nil {
		return nil, err
	}
	if err := tunnelcore.CheckDevice(q.Device); err != nil {
		return nil, badRequest(fmt.Errorf("device: %w", err))
	}
	if q.Port < 1 || q.Port > 65535 {
		return nil, badRequest(fmt.Errorf("port: %d is not a number from 1 to 65535", q.Port))
	}
	lasts := defaultGrantTime
	if q.For != "" {
		var err error
		if lasts, err = caddy.ParseDuration(q.For); err != nil || lasts < time.Second || lasts > registry.GrantTime {
			return nil, badRequest(fmt.Errorf("for: %q is not a duration such as 30m, 2h or 7d, from 1s to 90d", q.For))
		}
	}
	var label string
	switch q.Kind {
	case registry.GrantConnect:
		if !a.Connect {
			return nil, conflict("grants for `connect` let nobody in here: write `connect` into the global option iottunnel, then reload")
		}
	case registry.GrantShare:
		if !a.closed() {
			return nil, conflict("links are for sites that are closed otherwise: write `access shared` into the block of the directive iottunnel that serves devices, then reload")
		}
		rec, err := e.hub.Registry().ByDevice(ctx, q.Device)
		if errors.Is(err, registry.ErrUnknown) {
			return nil, conflict("device %s has no hostname: it gets one when it connects", q.Device)
		}
		if err != nil {
			return nil, err
		}
		label = rec.Label
	default:
		return nil, badRequest(fmt.Errorf("kind: %q is neither connect nor share", q.Kind))
	}
	token, g, err := e.hub.NewGrant(ctx, registry.Grant{
		Kind: q.Kind, Device: q.Device, Port: uint16(q.Port), By: q.By, Until: time.Now().Add(lasts),
	})
	if err != nil {
		return nil, err
	}
	v := viewGrant(g)
	v.Token = token
	if label != "" {
		v.URL = e.hub.PageURL(label, g.Port) + strings.TrimPrefix(sharePath, "/") + "#" + token
	}
	return v, nil
}

// grantsView is a page of grants; Next is the `after` of the next one, if there is one.
type grantsView struct {
	Grants []grantView `json:"grants"`
	Next   string      `json:"next,omitempty"`
}

func adminGrants(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	p, limit := r.URL.Query(), defaultPage
	if text := p.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxPage {
			return nil, badRequest(fmt.Errorf("limit: %q is not a number from 1 to %d", text, maxPage))
		}
	}
	list, err := e.hub.Registry().Grants(ctx, p.Get("after"), limit)
	if err != nil {
		return nil, err
	}
	v := grantsView{Grants: []grantView{}}
	for _, g := range list {
		v.Grants = append(v.Grants, viewGrant(g))
	}
	if len(list) == limit {
		v.Next = list[limit-1].ID
	}
	return v, nil
}

func adminDropGrant(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	id := r.PathValue("grant")
	return map[string]string{"id": id, "done": "revoked"}, e.hub.RevokeGrant(ctx, id)
}

// exportGrant is a grant as it is moved from one registry to another: the hash of its
// secret.
type exportGrant struct {
	ID     string             `json:"id"`
	Kind   registry.GrantKind `json:"kind"`
	Device string             `json:"device"`
	Port   uint16             `json:"port"`
	By     string             `json:"by,omitempty"`
	Hash   string             `json:"hash"` // SHA-256, hex
	Until  time.Time          `json:"until"`
}

// exportGrants writes a line for each grant.
func exportGrants(ctx context.Context, reg registry.Registry, to *json.Encoder) error {
	for after := ""; ; {
		list, err := reg.Grants(ctx, after, scanPage)
		if err != nil {
			return err
		}
		for _, g := range list {
			after = g.ID
			line := exportLine{Grant: &exportGrant{ID: g.ID, Kind: g.Kind, Device: g.Device, Port: g.Port, By: g.By, Hash: g.Hash.String(), Until: g.Until}}
			if err := to.Encode(line); err != nil {
				return err
			}
		}
		if len(list) < scanPage {
			return nil
		}
	}
}

// importGrant records a grant, unless it is there, or has expired.
func importGrant(ctx context.Context, h *tunnelcore.Hub, g exportGrant) (changed bool, err error) {
	if err := tunnelcore.CheckDevice(g.Device); err != nil {
		return false, err
	}
	hash, err := registry.ParseSecretHash(g.Hash)
	if err != nil {
		return false, fmt.Errorf("grant: %w", err)
	}
	if !g.Until.After(time.Now()) {
		return false, nil
	}
	list, err := h.Registry().FindGrants(ctx, []string{g.ID})
	if err != nil || list[0].ID != "" {
		return false, err
	}
	err = h.Registry().AddGrant(ctx, registry.Grant{ID: g.ID, Kind: g.Kind, Device: g.Device, Port: g.Port, By: g.By, Hash: hash, Until: g.Until})
	return err == nil, err
}
