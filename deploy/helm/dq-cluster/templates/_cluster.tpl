{{/*
The Ray cluster of a RayService or RayJob. Takes a dict: root, component, head, workerGroups,
autoscaling (bool), autoscaler (options), gcs (options or nil), env (map), mounts and volumes (lists).
*/}}
{{- define "dq.rayCluster" -}}
{{- $root := .root }}{{- $values := .root.Values -}}
rayVersion: {{ $values.ray.version | quote }}
authOptions:
  mode: {{ $values.ray.auth }}
enableInTreeAutoscaling: {{ .autoscaling }}
{{- if .autoscaling }}
autoscalerOptions:
  version: v2
  upscalingMode: {{ .autoscaler.upscalingMode }}
  idleTimeoutSeconds: {{ .autoscaler.idleTimeoutSeconds }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  env:
    - {name: HOME, value: /tmp}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
  securityContext: {{- toYaml $values.containerSecurityContext | nindent 4 }}
  resources:
    limits: {cpu: 500m, memory: 1Gi}
    requests: {cpu: 200m, memory: 1Gi}
{{- end }}
{{- with .gcs }}
gcsFaultToleranceOptions:
  redisAddress: {{ .redisAddress | quote }}
  {{- if .existingSecret }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .passwordKey }}}
  {{- end }}
{{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0" # shards and tasks belong on the workers
  template: {{- include "dq.rayPod" (merge (dict "group" .head "isHead" true) .) | nindent 4 }}
{{- with .workerGroups }}
workerGroupSpecs:
  {{- range $name, $group := . }}
  {{- $least := $group.minReplicas | int }}{{- $most := $group.maxReplicas | int }}
  {{- if gt $least $most }}
  {{- fail (printf "worker group %s of %s: minReplicas %d is greater than maxReplicas %d" $name $.component $least $most) }}
  {{- end }}
  {{- if or (lt (int $group.replicas) $least) (gt (int $group.replicas) $most) }}
  {{- fail (printf "worker group %s of %s: replicas %d is not between minReplicas %d and maxReplicas %d" $name $.component (int $group.replicas) $least $most) }}
  {{- end }}
  - groupName: {{ $name }}
    replicas: {{ $group.replicas }}
    minReplicas: {{ $least }}
    maxReplicas: {{ $most }}
    rayStartParams: {}
    # As KubeRay writes a group: what it adds would make the list its own.
    numOfHosts: 1
    scaleStrategy: {}
    template: {{- include "dq.rayPod" (merge (dict "group" $group "isHead" false) $) | nindent 6 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* One Ray pod. KubeRay adds the command, the /dev/shm volume, and the probes that are not given. */}}
{{- define "dq.rayPod" -}}
{{- $root := .root }}{{- $values := .root.Values -}}
{{- $limits := (.group.resources | default dict).limits | default dict -}}
metadata:
  labels: # no version: a new chart alone must not replace a running cluster
    {{- include "dq.selectorLabels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  {{- with $values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "dq.serviceAccountName" $root }}
  # Only the autoscaler beside the head talks to Kubernetes.
  automountServiceAccountToken: {{ and .isHead .autoscaling }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
  {{- with index $.group $key }}
  {{ $key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with .group.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .group.terminationGracePeriodSeconds | default 60 }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" .isHead }}
      image: {{ include "dq.image" (list $root (hasKey $limits "nvidia.com/gpu")) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      securityContext: {{- toYaml $values.containerSecurityContext | nindent 8 }}
      ports:
        {{- if .isHead }}
        - {name: gcs-server, containerPort: 6379, protocol: TCP}
        - {name: dashboard, containerPort: 8265, protocol: TCP}
        - {name: client, containerPort: 10001, protocol: TCP}
        {{- end }}
        {{- if eq .component "serve" }}
        - {name: serve, containerPort: 8000, protocol: TCP}
        {{- end }}
        - {name: metrics, containerPort: 8080, protocol: TCP}
        - {name: dq-metrics, containerPort: 8081, protocol: TCP}
      env:
        {{- include "dq.environment" $root | nindent 8 }}
        {{- range $name, $value := .env }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .group.livenessProbe }}
      livenessProbe: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .group.readinessProbe }}
      readinessProbe: {{- toYaml . | nindent 8 }}
      {{- end }}
      resources: {{- include "dq.resources" (.group.resources | default dict) | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- with concat .mounts $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ include "dq.quantity" $values.tmpSizeLimit | quote }}}
    {{- with concat .volumes $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "dq.environment" -}}
- {name: HOME, value: /tmp}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: DQ_LOG_FORMAT, value: {{ .Values.logging.format }}}
- {name: DQ_LOG_LEVEL, value: {{ .Values.logging.level }}}
- {name: DQ_METRICS_PORT, value: "8081"}
{{- if eq .Values.ray.auth "disabled" }}
- {name: RAY_AUTH_MODE, value: disabled}
{{- end }}
{{- with .Values.storage.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}
{{- end }}
{{- with .Values.tracing.endpoint }}
- {name: OTEL_TRACES_EXPORTER, value: otlp}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: OTEL_SERVICE_NAME, value: {{ include "dq.fullname" $ }}}
{{- end }}
{{- end }}
