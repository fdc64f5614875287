{{- define "dq.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" }}
{{- end }}

{{/* At most 47 characters: KubeRay appends its own suffixes to a RayService's name. */}}
{{- define "dq.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" }}
{{- else if contains (include "dq.name" .) .Release.Name }}
{{- .Release.Name | trunc 47 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "dq.name" .) | trunc 47 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* (list root "suffix"): a name whose suffix survives the cut at 47 characters. */}}
{{- define "dq.suffixed" -}}
{{- $root := index . 0 }}{{- $suffix := index . 1 }}
{{- printf "%s-%s" (include "dq.fullname" $root | trunc (int (sub 46 (len $suffix))) | trimSuffix "-") $suffix }}
{{- end }}

{{- define "dq.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dq.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dq.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "dq.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: dq-cluster
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "dq.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "dq.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* (list root cuda): the image reference, by digest where one is given. */}}
{{- define "dq.image" -}}
{{- $root := index . 0 }}{{- $cuda := index . 1 }}
{{- with $root.Values.image }}
{{- $tag := default $root.Chart.AppVersion .tag }}
{{- if $cuda }}{{- $tag = default (printf "%s-cuda" $tag) .cudaTag }}{{- end }}
{{- $digest := ternary .cudaDigest .digest $cuda }}
{{- if $digest }}{{ .repository }}@{{ $digest }}{{ else }}{{ .repository }}:{{ $tag }}{{ end }}
{{- end }}
{{- end }}

{{/*
A quantity as Kubernetes writes it: 1Gi for 1024Mi, 500m for 0.5, always text. KubeRay's operator
writes whole objects; what it writes otherwise than Helm did is from then on the operator's, and the
next upgrade conflicts.
*/}}
{{- define "dq.quantity" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]*\\.?[0-9]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $units := list "m" "" "k" "M" "G" "T" "P" -}}{{- $step := 1000 -}}
{{- if hasSuffix "i" $unit -}}
{{- $units = list "" "Ki" "Mi" "Gi" "Ti" "Pi" "Ei" -}}{{- $step = 1024 -}}
{{- end -}}
{{- if and $number (has $unit $units) -}}
{{- $amount := float64 $number -}}{{- $left := true -}}
{{- range $units -}}
{{- if eq . $unit -}}{{- $left = false -}}{{- end -}}
{{- if $left -}}{{- $amount = mulf $amount $step -}}{{- end -}}
{{- end -}}
{{- $amount = ceil $amount | int64 -}}{{- $place := 0 -}}
{{- range until (sub (len $units) 1 | int) -}}
{{- if and $amount (eq (mod $amount $step) 0) -}}
{{- $amount = div $amount $step -}}{{- $place = add1 $place -}}
{{- end -}}
{{- end -}}
{{- if $amount -}}{{- $amount -}}{{- index $units (int $place) -}}{{- else -}}0{{- end -}}
{{- else -}}{{- $text -}}{{- end -}}
{{- end }}

{{/* Limits and requests of a container. */}}
{{- define "dq.resources" -}}
{{- $kinds := dict -}}
{{- range $kind, $amounts := . -}}
{{- $written := dict -}}
{{- range $name, $amount := $amounts -}}
{{- $_ := set $written $name (include "dq.quantity" $amount) -}}
{{- end -}}
{{- $_ := set $kinds $kind $written -}}
{{- end -}}
{{- toYaml $kinds -}}
{{- end }}
