package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// exportLine is a device as it is moved from one registry to another: its secrets
// (their hashes) and its label. Public ports are told, and leased anew.
type exportLine struct {
	Device     string            `json:"device"`
	Current    string            `json:"current,omitempty"` // SHA-256, hex
	Next       string            `json:"next,omitempty"`
	Revoked    bool              `json:"revoked,omitempty"`
	Label      string            `json:"label,omitempty"`
	LeaseUntil *time.Time        `json:"lease_until,omitempty"`
	Ports      map[uint16]uint16 `json:"ports,omitempty"`
	// Grant makes the line one of a grant, and no device's.
	Grant *exportGrant `json:"grant,omitempty"`
}

// exportDevices writes a line for each device that has a lease or was enrolled, and for
// each grant.
func exportDevices(ctx context.Context, h *tunnelcore.Hub, to *json.Encoder) error {
	reg := h.Registry()
	write := func(after string) (last string, err error) {
		records, err := reg.Devices(ctx, after, scanPage)
		if err != nil {
			return "", err
		}
		for _, rec := range records {
			line := exportLine{Device: rec.Device, Label: rec.Label, LeaseUntil: moment(rec.Until), Ports: rec.Ports}
			cred, err := reg.Credential(ctx, rec.Device)
			if err == nil {
				line.secrets(cred)
			} else if !errors.Is(err, registry.ErrUnknown) {
				return "", err
			}
			if err := to.Encode(line); err != nil {
				return "", err
			}
			last = rec.Device
		}
		if len(records) < scanPage {
			last = ""
		}
		return last, nil
	}
	for after, more := "", true; more; more = after != "" {
		var err error
		if after, err = write(after); err != nil {
			return err
		}
	}
	if err := exportEnrolled(ctx, reg, to); err != nil {
		return err
	}
	return exportGrants(ctx, reg, to)
}

// exportEnrolled writes those that have no lease.
func exportEnrolled(ctx context.Context, reg registry.Registry, to *json.Encoder) error {
	for after := ""; ; {
		credentials, err := reg.Enrolled(ctx, after, scanPage)
		if err != nil {
			return err
		}
		for _, cred := range credentials {
			after = cred.Device
			if _, err := reg.ByDevice(ctx, cred.Device); err == nil {
				continue
			} else if !errors.Is(err, registry.ErrUnknown) {
				return err
			}
			line := exportLine{Device: cred.Device}
			line.secrets(cred)
			if err := to.Encode(line); err != nil {
				return err
			}
		}
		if len(credentials) < scanPage {
			return nil
		}
	}
}

func (l *exportLine) secrets(c registry.Credential) {
	l.Current, l.Next, l.Revoked = c.Current.String(), c.Next.String(), c.Revoked()
}

// importDevice writes what a line says of a device. What is recorded of it already
// stays, unless replace is set: then the secrets are those of the line. A lease that
// the device has always stays.
func importDevice(ctx context.Context, h *tunnelcore.Hub, text string, replace bool) (device string, changed bool, err error) {
	var line exportLine
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		return "", false, fmt.Errorf("not a line of an export: %w", err)
	}
	if line.Grant != nil {
		changed, err := importGrant(ctx, h, *line.Grant)
		return line.Grant.Device, changed, err
	}
	if err := tunnelcore.CheckDevice(line.Device); err != nil {
		return "", false, err
	}
	// First the label: a device that can connect takes another one. It has to when the
	// label cannot be had at all.
	if line.Label != "" && line.LeaseUntil != nil {
		if changed, err = importLease(ctx, h, line); err != nil {
			err = fmt.Errorf("label: %w", err)
			if !errors.Is(err, errNoLabel) && !errors.Is(err, registry.ErrLabelTaken) {
				return line.Device, changed, err
			}
		}
	}
	if line.Current != "" || line.Revoked {
		secrets, err2 := importSecrets(ctx, h, line, replace)
		if err2 != nil {
			err = errors.Join(err, fmt.Errorf("secrets: %w", err2))
		}
		changed = changed || secrets
	}
	return line.Device, changed, err
}

var errNoLabel = errors.New("this is no label")

func importSecrets(ctx context.Context, h *tunnelcore.Hub, line exportLine, replace bool) (changed bool, err error) {
	current, err := registry.ParseSecretHash(line.Current)
	next, err2 := registry.ParseSecretHash(line.Next)
	if err := errors.Join(err, err2); err != nil {
		return false, err
	}
	if line.Revoked != (current == registry.SecretHash{}) {
		return false, errors.New("a device that is revoked has no secret")
	}
	reg := h.Registry()
	cred, err := reg.Credential(ctx, line.Device)
	switch {
	case errors.Is(err, registry.ErrUnknown):
		cred = registry.Credential{Device: line.Device}
	case err != nil:
		return false, err
	case !replace || cred.Current == current && cred.Next == next:
		return false, nil
	}
	cred.Current, cred.Next = current, next
	if _, err := reg.SetCredential(ctx, cred); err != nil {
		return false, err
	}
	if err := reg.Notify(ctx, line.Device); err != nil {
		return true, err
	}
	h.Recheck(line.Device)
	return true, nil
}

// importLease leases the label to the device, unless the device has a lease.
func importLease(ctx context.Context, h *tunnelcore.Hub, line exportLine) (changed bool, err error) {
	if !tunnelcore.ValidLabel(line.Label) {
		return false, fmt.Errorf("%q: %w", line.Label, errNoLabel)
	}
	left := time.Until(*line.LeaseUntil)
	if left <= 0 {
		return false, nil
	}
	reg := h.Registry()
	if _, err := reg.ByDevice(ctx, line.Device); err == nil {
		return false, nil
	} else if !errors.Is(err, registry.ErrUnknown) {
		return false, err
	}
	lease, err := claimPatiently(ctx, reg, registry.Claim{
		Device: line.Device, Label: line.Label, Lease: left,
		Instance: wire.NewID(), Tunnel: wire.NewID(), Node: h.NodeRef(),
	})
	var held *registry.HeldError
	if errors.As(err, &held) {
		return false, nil // it has come meanwhile
	}
	if err != nil {
		return false, err
	}
	err = reg.Release(ctx, lease.Holder, left, "imported")
	if errors.Is(err, registry.ErrLost) {
		err = nil // it has come meanwhile
	}
	return lease.Fresh, err
}

// An import waits so long, asking every so often, for a registry that is new to give
// labels: most are, when devices are imported.
const importWait, importPause = 20 * time.Second, 250 * time.Millisecond

// claimPatiently is Claim for a registry that gives labels in a moment.
func claimPatiently(ctx context.Context, reg registry.Registry, c registry.Claim) (registry.Lease, error) {
	end := time.Now().Add(importWait)
	for {
		lease, err := reg.Claim(ctx, c)
		if !errors.Is(err, registry.ErrRestoring) || time.Now().After(end) {
			return lease, err
		}
		select {
		case <-time.After(importPause):
		case <-ctx.Done():
			return lease, ctx.Err()
		}
	}
}
