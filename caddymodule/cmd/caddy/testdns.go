//go:build iottunnel_testdns

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/libdns/libdns"
)

func init() { caddy.RegisterModule(testDNS{}) }

// testDNS is a DNS provider for the tests of certificates: it writes records at the
// management address of pebble-challtestsrv.
type testDNS struct {
	Management string `json:"management"` // its URL
}

// CaddyModule returns the Caddy module information.
func (testDNS) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "dns.providers.testdns", New: func() caddy.Module { return new(testDNS) }}
}

// UnmarshalCaddyfile reads `testdns URL`.
func (p *testDNS) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	if !d.AllArgs(&p.Management) {
		return d.ArgErr()
	}
	return nil
}

// AppendRecords implements libdns.RecordAppender.
func (p *testDNS) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.tell(ctx, "/set-txt", zone, records)
}

// DeleteRecords implements libdns.RecordDeleter.
func (p *testDNS) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.tell(ctx, "/clear-txt", zone, records)
}

func (p *testDNS) tell(ctx context.Context, path, zone string, records []libdns.Record) error {
	for _, record := range records {
		rr := record.RR()
		body, err := json.Marshal(map[string]string{"host": libdns.AbsoluteName(rr.Name, zone), "value": rr.Data})
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Management+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("test DNS: status %s", res.Status)
		}
	}
	return nil
}
