"""A sound to the text that is spoken in it: Whisper and its like, and encoders with a CTC head."""

from pressoir.extensions.task import Metric, Task, Tensor

TASK = Task(
    name="automatic-speech-recognition",
    position=4,
    heads=("ForCTC", "ForSpeechSeq2Seq", "WhisperForConditionalGeneration"),
    sound=True,
    adapter="pressoir.inference.automatic_speech_recognition:SpeechRecognizer",
    export="pressoir.export.encoder_decoder:run",
    read_data="pressoir.evaluation.datasets:recordings",
    required_data=("manifest",),
    languages=("source_language",),
    unit="recordings",
    predictor="pressoir.evaluation.child.predictors:recognition",
    remote="pressoir.evaluation.child.remote.model:recognition",
    estimate="pressoir.evaluation.estimates.sample_memory:SpeechMemory",
    score="pressoir.evaluation.report.scoring:recognition",
    metrics=(
        Metric("wer", "WER", lower_is_better=True, form="percent"),
        Metric("cer", "CER", lower_is_better=True, form="percent"),
    ),
    worker="pressoir.serving.worker.worker_model:open_recognizer",
    operations=("transcribe",),
    tier_settings=("max_new_tokens", "num_beams", "max_audio_s", "source_language"),
    kserve="pressoir.serving.http.kserve:transcribe",
    outputs=(Tensor("text", "BYTES", (-1,)),),
    parameters=("sampling_rate", "language", "max_new_tokens", "num_beams"),
)
