package redisregistry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// portCount is how many bits of the version that Ports tells say how many ports
// are leased: between two changes ports can only end, so that their number tells
// them apart.
const portCount = 17

// Ports implements registry.Registry.
func (r *Registry) Ports(ctx context.Context, version int64) ([]registry.PortLease, int64, error) {
	type answer struct {
		list      []registry.PortLease
		now       int64
		restoring error // the list has what is leased, but perhaps not all of it
	}
	a, err := call(ctx, r, "list ports", func(ctx context.Context) (a answer, err error) {
		a.list, a.now, err = r.leasedPorts(ctx, version)
		if errors.Is(err, errRestoring) {
			a.restoring, err = err, nil
		}
		return a, err
	})
	switch {
	case err != nil:
		return nil, 0, err
	case a.restoring != nil:
		return a.list, 0, a.restoring
	}
	return a.list, a.now, nil
}

func (r *Registry) leasedPorts(ctx context.Context, version int64) ([]registry.PortLease, int64, error) {
	known, count := (version>>portCount)-1, version&(1<<portCount-1)
	p := r.run(ctx, leasedPortsScript, r.keys.portKeys(),
		r.portRest.Milliseconds(), known, count)
	now := (p.number(0)+1)<<portCount + p.number(1)
	if p.err != nil || len(p.list) == 2 {
		return nil, now, p.err
	}
	ports, owners := p.sub(2), p.sub(3)
	list := make([]registry.PortLease, 0, len(ports.list))
	for i := range ports.list {
		owner := owners.text(i)
		device, port, err := splitOwner(owner)
		if ports.err != nil || owners.err != nil || err != nil {
			return nil, 0, firstError(ports.err, owners.err, err)
		}
		list = append(list, registry.PortLease{Public: uint16(ports.number(i)), Device: device, Port: port})
	}
	// Those that miss may be lost, and leased still.
	return list, now, r.mayLease(ctx)
}

// splitOwner reads what portOwner has written.
func splitOwner(owner string) (device string, port uint16, err error) {
	at := strings.LastIndexByte(owner, ':')
	if at < 0 {
		return "", 0, fmt.Errorf("owner %q of a public port: want DEVICE:PORT", owner)
	}
	p, err := strconv.ParseUint(owner[at+1:], 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("owner %q of a public port: %w", owner, err)
	}
	return owner[:at], uint16(p), nil
}

// Time implements registry.Registry. In a cluster it is the clock of some server:
// they agree well enough for leases.
func (r *Registry) Time(ctx context.Context) (time.Time, error) {
	return call(ctx, r, "ask for the time", func(ctx context.Context) (time.Time, error) {
		return r.c.Time(ctx).Result()
	})
}
