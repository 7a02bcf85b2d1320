package main

import (
	"errors"
	"fmt"
	"strings"

	"gantry.dev/schemas"
)

// target is a kind, and the name of an object where one was given.
type target struct {
	kind schemas.Kind
	name string
}

// label is how messages call an object: deployment.apps/web.
func label(k schemas.Kind, name string) string {
	if k.GVK.Group == "" {
		return k.Singular + "/" + name
	}
	return k.Singular + "." + k.GVK.Group + "/" + name
}

// categories are words for several kinds.
var categories = map[string][]string{
	"all": {
		schemas.Pods, schemas.ReplicationControllers, schemas.Services, schemas.DaemonSets, schemas.Deployments, schemas.ReplicaSets,
		schemas.StatefulSets, schemas.HorizontalPodAutoscalers, schemas.CronJobs, schemas.Jobs,
	},
}

func kindOf(word string) (schemas.Kind, error) {
	for _, alias := range []string{word, strings.ToLower(word)} {
		if k, ok := schemas.KindByAlias(alias); ok {
			return k, nil
		}
		// pods.v1 and deployments.v1.apps are accepted by kubectl too.
		if first, _, ok := strings.Cut(alias, "."); ok {
			if k, ok := schemas.KindByAlias(first); ok && strings.HasSuffix(alias, k.GVK.Group) {
				return k, nil
			}
		}
	}
	return schemas.Kind{}, fmt.Errorf("the server doesn't have a resource type %q", word)
}

func kindsOf(words string) ([]schemas.Kind, error) {
	var out []schemas.Kind
	for word := range strings.SplitSeq(words, ",") {
		resources, category := categories[word]
		if !category {
			resources = []string{word}
		}
		for _, r := range resources {
			k, err := kindOf(r)
			if err != nil {
				return nil, err
			}
			// There are no objects of a kind that is refused.
			if !category || k.Refused == "" {
				out = append(out, k)
			}
		}
	}
	return out, nil
}

// parseTargets reads KIND, KIND NAME..., KIND1,KIND2 and KIND/NAME...
func parseTargets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, errors.New("you must specify the type of resource, such as pods, or one object, such as pod/web")
	}
	if strings.Contains(args[0], "/") {
		return parsePairs(args)
	}
	kinds, err := kindsOf(args[0])
	if err != nil {
		return nil, err
	}
	var out []target
	for _, k := range kinds {
		if len(args) == 1 {
			out = append(out, target{kind: k})
		}
		for _, name := range args[1:] {
			if strings.Contains(name, "/") {
				return nil, fmt.Errorf("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. '%s')", name)
			}
			out = append(out, target{k, name})
		}
	}
	return out, nil
}

func parsePairs(args []string) ([]target, error) {
	var out []target
	for _, arg := range args {
		word, name, ok := strings.Cut(arg, "/")
		if !ok || word == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("arguments in resource/name form must have a single resource and name: %q", arg)
		}
		k, err := kindOf(word)
		if err != nil {
			return nil, err
		}
		out = append(out, target{k, name})
	}
	return out, nil
}
