package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
)

// options are what flags, environment and file say, each over the next.
type options struct {
	configFile         string
	servers            list
	device             string
	tokenFile          string
	token              string // of the environment alone
	forwards           list
	ca                 string
	clientCert         string
	clientKey          string
	insecureSkipVerify bool
	allowPlaintext     bool
	proxy              string
	profile            string
	heartbeat          time.Duration
	redirectTo         list
	dns                list
	maxBackoff         time.Duration
	status             string
	logLevel           slog.Level
	logFormat          string
	once               bool

	said map[string]string // flag → how the strongest source names it
}

// name is what a setting is called where it was set, or would be.
func (o *options) name(flag string) string {
	if name := o.said[flag]; name != "" {
		return name
	}
	return "--" + flag
}

// list is a flag that may be repeated. What a stronger source says replaces what
// a weaker one said.
type list struct {
	values []string
	fresh  bool // the next value replaces all
}

func (l *list) String() string { return strings.Join(l.values, " ") }

func (l *list) Set(s string) error {
	if l.fresh {
		l.values, l.fresh = nil, false
	}
	l.values = append(l.values, s)
	return nil
}

// flags makes the flag set that fills o. The key of a flag in the file, and its
// name in the environment, follow from its name.
func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("iottunnel-agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	fs.StringVar(&o.configFile, "config", "", "")
	fs.StringVar(&o.configFile, "c", "", "")
	fs.Var(&o.servers, "server", "")
	fs.StringVar(&o.device, "device", "", "")
	fs.StringVar(&o.tokenFile, "token-file", "", "")
	fs.Var(&o.forwards, "forward", "")
	fs.StringVar(&o.ca, "ca", "", "")
	fs.StringVar(&o.clientCert, "client-cert", "", "")
	fs.StringVar(&o.clientKey, "client-key", "", "")
	fs.BoolVar(&o.insecureSkipVerify, "insecure-skip-verify", false, "")
	fs.BoolVar(&o.allowPlaintext, "allow-plaintext", false, "")
	fs.StringVar(&o.proxy, "proxy", "", "")
	fs.StringVar(&o.profile, "profile", "full", "")
	fs.DurationVar(&o.heartbeat, "heartbeat", 0, "")
	fs.Var(&o.redirectTo, "redirect-to", "")
	fs.Var(&o.dns, "dns", "")
	fs.DurationVar(&o.maxBackoff, "max-backoff", 30*time.Second, "")
	fs.StringVar(&o.status, "status", "", "")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "")
	fs.StringVar(&o.logFormat, "log-format", "text", "")
	fs.BoolVar(&o.once, "once", false, "")
	return fs
}

func (o *options) lists() []*list { return []*list{&o.servers, &o.forwards, &o.redirectTo, &o.dns} }

// stronger announces values of a source that wins over what was set so far.
func (o *options) stronger() {
	for _, l := range o.lists() {
		l.fresh = true
	}
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// parse reads the command line, and what belongs to it: environment and file. The
// command may stand before, behind and among the flags.
func parse(args, environ []string) (name string, o *options, err error) {
	env := make(map[string]string)
	for _, e := range environ {
		key, value, _ := strings.Cut(e, "=")
		env[key] = value
	}
	// The file is named by what is stronger than it.
	o = new(options)
	given := o.flags()
	if name, err = o.parseOnto(given, args); err != nil || name != "run" {
		return name, o, err
	}
	file := o.configFile
	if file == "" {
		file = env["IOTTUNNEL_CONFIG"]
	}
	o = new(options)
	fs := o.flags()
	o.said = make(map[string]string)
	if file != "" {
		if err := readFile(fs, o, file); err != nil {
			return name, nil, err
		}
	}
	o.stronger()
	if err := readEnvironment(fs, o, env); err != nil {
		return name, nil, err
	}
	o.stronger()
	given.Visit(func(f *flag.Flag) { delete(o.said, f.Name) })
	name, err = o.parseOnto(fs, args)
	return name, o, err
}

func (o *options) parseOnto(fs *flag.FlagSet, args []string) (name string, err error) {
	for {
		if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
			return name, err
		} else if err != nil {
			return name, &usageError{dashes(err)}
		}
		switch {
		case fs.NArg() == 0:
			return name, nil
		case name != "":
			return name, &usageError{fmt.Errorf("%s: unexpected argument %q", name, fs.Arg(0))}
		}
		name, args = fs.Arg(0), fs.Args()[1:]
	}
}

// dashes writes flags in messages of package flag as they are documented.
func dashes(err error) error {
	text := err.Error()
	for _, before := range []string{"flag provided but not defined: -", "flag needs an argument: -", "for flag -", "for -"} {
		if head, tail, ok := strings.Cut(text, before); ok && !strings.HasPrefix(tail, "-") && !strings.HasPrefix(tail, "c:") {
			return errors.New(head + before + "-" + tail)
		}
	}
	return err
}

// readEnvironment sets each flag from IOTTUNNEL_NAME. Repeated ones are separated
// by spaces.
func readEnvironment(fs *flag.FlagSet, o *options, env map[string]string) (err error) {
	o.token = env["IOTTUNNEL_TOKEN"] // which is said nowhere else
	fs.VisitAll(func(f *flag.Flag) {
		key := "IOTTUNNEL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := env[key]
		if value == "" || err != nil || f.Name == "c" || f.Name == "config" {
			return
		}
		values := []string{value}
		if _, many := isList(f); many {
			values = strings.Fields(value)
		}
		for _, v := range values {
			if err = fs.Set(f.Name, v); err != nil {
				err = fmt.Errorf("%s: %w", key, err)
				return
			}
		}
		o.said[f.Name] = key
	})
	return err
}

// readFile sets flags from a YAML file whose keys are their names, with _ for -.
func readFile(fs *flag.FlagSet, o *options, name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	settings, err := parseYAML(string(text))
	if err != nil {
		return fmt.Errorf("config: %s: %w", name, err)
	}
	seen := make(map[string]bool)
	for _, s := range settings {
		if err := apply(fs, s, seen); err != nil {
			return fmt.Errorf("config: %s: %w", name, err)
		}
		o.said[strings.ReplaceAll(s.key, "_", "-")] = fmt.Sprintf("config: %s: line %d: %s", name, s.line, s.key)
	}
	return nil
}

// apply sets the flag that s is about.
func apply(fs *flag.FlagSet, s setting, seen map[string]bool) error {
	f := fs.Lookup(strings.ReplaceAll(s.key, "_", "-"))
	_, many := isList(f)
	switch {
	case s.key == "token":
		return &lineError{s.line, "a token does not stand in this file: name its own with token_file"}
	case f == nil || strings.Contains(s.key, "-") || s.key == "c" || s.key == "config":
		return &lineError{s.line, fmt.Sprintf("unknown key %q; there are: %s", s.key, strings.Join(keys(fs), ", "))}
	case seen[s.key]:
		return &lineError{s.line, s.key + " is given twice"}
	case s.list && !many:
		return &lineError{s.line, s.key + " takes one value, not a list"}
	}
	seen[s.key] = true
	for _, v := range s.values {
		if err := f.Value.Set(v.text); err != nil {
			return &lineError{v.line, fmt.Sprintf("%s: %q: %v", s.key, v.text, err)}
		}
	}
	return nil
}

func isList(f *flag.Flag) (*list, bool) {
	if f == nil {
		return nil, false
	}
	l, ok := f.Value.(*list)
	return l, ok
}

func keys(fs *flag.FlagSet) []string {
	var keys []string
	fs.VisitAll(func(f *flag.Flag) {
		if f.Name != "c" && f.Name != "config" {
			keys = append(keys, strings.ReplaceAll(f.Name, "-", "_"))
		}
	})
	slices.Sort(keys)
	return keys
}
